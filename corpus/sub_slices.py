"""Micro scale: a slice cut into sub-slices of nearly equal numbers of neighbouring cells, the same however the tissue is turned."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from corpus.slice import FloatArray, IntArray
from stofm.config import FrozenModel

ISOTROPY = 1e-6  # relative gap of the two spreads below which a group has no long axis of its own
TIE_UM = 3  # decimals of a micrometre; cells whose places along the cut agree to this are a tie


class SubSliceConfig(FrozenModel):
    """How large the pieces are that the SE(2) transformer sees."""

    n_cells: int = Field(1000, ge=1, description="Cells of a sub-slice, nearly; a slice of n cells gives max(1, round(n / n_cells)).")


def cut_sub_slices(coords_um: FloatArray, keys: np.ndarray, *, n_cells: int) -> list[IntArray]:
    """Cut a slice by halving it again and again across its longer axis.

    Every cell is in exactly one sub-slice, and sizes differ by at most one cell per halving. The axes are those of the
    tissue (principal axes of the group at hand), so turning, shifting or mirroring it changes nothing. Cells at equal
    places along a cut go by content; only cells that agree in both may change sides.

    Parameters
    ----------
    coords_um : (n, 2) float64, micrometres
    keys : (n,) uint64
        From `corpus.cell_order.content_keys`.
    n_cells : int
        Wanted size.

    Returns
    -------
    list of (n_i,) int64
        Rows of each sub-slice, increasing.
    """
    n_parts = max(1, round(len(coords_um) / n_cells))
    return [np.sort(rows) for rows in _halve(np.arange(len(coords_um)), n_parts, coords_um, keys)]


def _halve(rows: IntArray, n_parts: int, coords_um: FloatArray, keys: np.ndarray) -> list[IntArray]:
    if n_parts == 1:
        return [rows]
    place = _places_along_cut(coords_um[rows], keys[rows])
    order = rows[np.lexsort((keys[rows], np.round(place, TIE_UM)))]
    n_first = n_parts // 2
    border = round(len(rows) * n_first / n_parts)
    return _halve(order[:border], n_first, coords_um, keys) + _halve(order[border:], n_parts - n_first, coords_um, keys)


def _places_along_cut(coords_um: FloatArray, keys: np.ndarray) -> FloatArray:
    """Return the place of each cell along the longer axis of its group, (n,) float64, micrometres.

    Weights drawn from the cells' content decide what geometry leaves open: which end of the axis comes first, and the
    axis itself where a group is as wide as it is long.
    """
    centred = coords_um - coords_um.mean(axis=0)
    weights = keys.astype(np.float64) / 2.0**64 - 0.5
    spreads, axes = np.linalg.eigh(centred.T @ centred)
    pull = weights @ centred
    axis = pull if spreads[1] - spreads[0] <= ISOTROPY * spreads[1] else axes[:, 1]
    return centred @ axis / max(float(np.linalg.norm(axis)), np.finfo(float).tiny) * (1.0 if pull @ axis >= 0 else -1.0)
