"""Micro scale: a slice cut into sub-slices of nearly equal numbers of neighbouring cells, the same however the tissue is turned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field, model_validator
from scipy.spatial import cKDTree

from corpus.slice import BoolArray, FloatArray, IntArray, nearest_spacing
from stofm.config import FrozenModel

ISOTROPY = 1e-6  # relative gap of the two spreads below which a group has no long axis of its own
TIE_UM = 3  # decimals of a micrometre; cells whose places along the cut agree to this are a tie
ISLAND_SPACINGS = 20  # an empty band wider than so many typical distances of nearest cells parts two islands


class SubSliceConfig(FrozenModel):
    """How large the pieces are that the SE(2) transformer sees."""

    n_cells: int = Field(1000, ge=1, description="Cells of a sub-slice, nearly; n cells give max(1, round(n / n_cells)) within the bounds.")
    min_cells: int | None = Field(None, ge=1, description="Fewest cells, unless the slice has fewer; default: a fifth of n_cells.")
    max_cells: int | None = Field(None, ge=1, description="Most cells, halo not counted; default: one and a half of n_cells.")
    halo_um: float = Field(0.0, ge=0, allow_inf_nan=False, description="Cells this near to a sub-slice are seen in it as context; 0: none.")

    @property
    def size_bounds(self) -> tuple[int, int]:
        """Fewest and most cells of a sub-slice."""
        fewest = max(1, self.n_cells // 5) if self.min_cells is None else self.min_cells
        most = self.n_cells + (self.n_cells + 1) // 2 if self.max_cells is None else self.max_cells
        return fewest, most

    @model_validator(mode="after")
    def _every_slice_can_be_cut(self) -> SubSliceConfig:
        fewest, most = self.size_bounds
        if not fewest <= self.n_cells <= most or 2 * fewest - 1 > most:
            raise ValueError(
                f"sizes {fewest} to {most} around {self.n_cells}; expected min_cells <= n_cells <= max_cells and 2 * min_cells <= max_cells + 1"
            )
        return self

    def n_parts(self, n: int) -> int:
        """Sub-slices of an island of `n` cells."""
        fewest, most = self.size_bounds
        return max(1, min(max(round(n / self.n_cells), -(-n // most)), n // fewest))


@dataclass(frozen=True, eq=False)
class SubSlice:
    """A piece of a slice as the model sees it.

    Attributes
    ----------
    rows : (n,) int64
        Rows of its cells in the slice: those it owns, increasing, then its context, increasing.
    n_owned : int
        Every cell of the slice is owned by one sub-slice; as context it may be seen by others too.
    """

    rows: IntArray
    n_owned: int

    @property
    def owned(self) -> IntArray:
        """(n_owned,) int64, rows of the cells it owns."""
        return self.rows[: self.n_owned]


def cut_sub_slices(coords_um: FloatArray, keys: np.ndarray, config: SubSliceConfig) -> list[SubSlice]:
    """Cut a slice into its islands, and each island by halving it again and again across its longer axis.

    Sub-slices of an island differ by at most one cell. The axes are those of the tissue (principal axes of the group at
    hand), so turning, shifting or mirroring it changes nothing. Cells at equal places along a cut go by content, then by
    their place across it; only cells that agree in all may change sides.

    Parameters
    ----------
    coords_um : (n, 2) float64, micrometres
    keys : (n,) uint64
        From `corpus.cell_order.content_keys`.
    config : SubSliceConfig
    """
    rows = np.arange(len(coords_um))
    band_um = ISLAND_SPACINGS * nearest_spacing(coords_um)
    fewest, _ = config.size_bounds
    islands = _islands(rows, coords_um, keys, band_um, fewest) if band_um > 0 else [rows]
    parts = [np.sort(part) for island in islands for part in _halve(island, config.n_parts(len(island)), coords_um, keys)]
    if not config.halo_um:
        return [SubSlice(part, len(part)) for part in parts]
    return [SubSlice(np.concatenate([part, _halo(part, coords_um, config.halo_um)]), len(part)) for part in parts]


def _islands(rows: IntArray, coords_um: FloatArray, keys: np.ndarray, band_um: float, fewest: int) -> list[IntArray]:
    """Part cells at every band wider than `band_um` that is empty right across, if `fewest` cells at least lie on both sides."""
    for place in _places(coords_um[rows], keys[rows]).T:
        order = np.argsort(place, kind="stable")
        gaps = np.diff(place[order])[fewest - 1 : len(rows) - fewest]
        if len(gaps) and gaps.max() > band_um:
            border = fewest + int(gaps.argmax())
            halves = order[:border], order[border:]
            return [island for half in halves for island in _islands(rows[half], coords_um, keys, band_um, fewest)]
    return [rows]


def _halve(rows: IntArray, n_parts: int, coords_um: FloatArray, keys: np.ndarray) -> list[IntArray]:
    if n_parts == 1:
        return [rows]
    n_first = n_parts // 2
    is_first = _nearer_end(rows, round(len(rows) * n_first / n_parts), coords_um, keys)
    return _halve(rows[is_first], n_first, coords_um, keys) + _halve(rows[~is_first], n_parts - n_first, coords_um, keys)


def _nearer_end(rows: IntArray, n_first: int, coords_um: FloatArray, keys: np.ndarray) -> BoolArray:
    """Mark the first `n_first` cells along the longer axis, those at the border by content, then by their place across, then by row."""
    along, across = np.round(_places(coords_um[rows], keys[rows]), TIE_UM).T
    border = np.partition(along, n_first - 1)[n_first - 1]
    is_first, ties = along < border, np.flatnonzero(along == border)
    is_first[ties[np.lexsort((across[ties], keys[rows[ties]]))[: n_first - is_first.sum()]]] = True
    return is_first


def _places(coords_um: FloatArray, keys: np.ndarray) -> FloatArray:
    """Return the place of each cell along the longer axis of its group and across it, (n, 2) float64, micrometres.

    Weights drawn from the cells' content decide what geometry leaves open: which end of an axis comes first, and the
    axis itself where a group is as wide as it is long. Where all express alike, those far from the centre weigh more.
    """
    centred = coords_um - coords_um.mean(axis=0)
    weights = keys.astype(np.float64) / 2.0**64 - 0.5 if (keys != keys[0]).any() else (centred**2).sum(axis=1)
    spreads, axes = np.linalg.eigh(centred.T @ centred)
    pull = weights @ centred
    along = pull if spreads[1] - spreads[0] <= ISOTROPY * spreads[1] else axes[:, 1]
    along = along / max(float(np.linalg.norm(along)), np.finfo(float).tiny)
    both = np.stack([along, [-along[1], along[0]]])
    return centred @ (both * np.where(both @ pull >= 0, 1.0, -1.0)[:, None]).T


def _halo(rows: IntArray, coords_um: FloatArray, halo_um: float) -> IntArray:
    """Other cells at most `halo_um` from one of `rows`, increasing; a thousandth of a micrometre more is a tie."""
    reach = halo_um + 10.0**-TIE_UM
    centre = coords_um[rows].mean(axis=0)
    radius = np.linalg.norm(coords_um[rows] - centre, axis=1).max()
    is_near = np.linalg.norm(coords_um - centre, axis=1) <= radius + reach
    is_near[rows] = False
    near = np.flatnonzero(is_near)
    return near[np.isfinite(cKDTree(coords_um[rows]).query(coords_um[near], distance_upper_bound=reach)[0])]
