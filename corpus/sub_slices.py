"""Micro scale: a slice cut into sub-slices of nearly equal numbers of neighbouring cells, the same however the tissue is turned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pydantic import Field, model_validator
from scipy.spatial import cKDTree

from corpus.halo import cells_within, nearest_cells
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
    context_share: float = Field(
        0.5, ge=0, le=8, description="Cells seen as context, the nearest of the same island, as a share of those that a sub-slice owns; 0: none."
    )
    context_in_training: bool = Field(False, description="Show the cells of `context_share` in training too, not only to a finished model.")
    halo_um: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Instead of `context_share`, and always in training: cells this near are the context; 0: none."
    )

    @property
    def for_training(self) -> SubSliceConfig:
        """The settings of sub-slices that a model is trained on."""
        return self if self.context_in_training or self.halo_um is not None else self.model_copy(update={"context_share": 0.0})

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


def cut_sub_slices(coords_um: FloatArray, keys: np.ndarray, config: SubSliceConfig, *, is_shifted: bool = False) -> list[SubSlice]:
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
    is_shifted : bool
        Another tiling of the same tissue, to compare with: the first and the last piece of every island are half as large as the others, so
        borders lie elsewhere.
    """
    rows = np.arange(len(coords_um))
    if not len(rows):
        return []
    band_um = ISLAND_SPACINGS * nearest_spacing(coords_um)
    fewest, _ = config.size_bounds
    islands = _islands(rows, coords_um, keys, band_um, fewest) if band_um > 0 else [rows]
    found: list[SubSlice] = []
    for island in islands:
        n_parts = config.n_parts(len(island))
        sizes = [0.5, *[1.0] * (n_parts - 1), 0.5] if is_shifted and len(island) > n_parts else [1.0] * n_parts
        parts = [np.sort(part) for part in _halve(island, sizes, coords_um, keys)]
        contexts = _contexts(parts, island, coords_um, config)
        found += [SubSlice(np.concatenate([part, context]), len(part)) for part, context in zip(parts, contexts, strict=True)]
    return found


def _contexts(parts: list[IntArray], island: IntArray, coords_um: FloatArray, config: SubSliceConfig) -> Iterator[IntArray]:
    """Rows that each part of an island sees beside its own, increasing."""
    if config.halo_um is not None:
        yield from (cells_within(part, coords_um, config.halo_um) if config.halo_um else part[:0] for part in parts)
        return
    island = np.sort(island)
    tree = cKDTree(coords_um[island])
    for part in parts:
        n_most = int(config.context_share * len(part))
        yield island[nearest_cells(np.searchsorted(island, part), tree, n_most)] if n_most else part[:0]


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


def _halve(rows: IntArray, sizes: list[float], coords_um: FloatArray, keys: np.ndarray) -> list[IntArray]:
    """Cut cells into pieces of these relative sizes."""
    if len(sizes) == 1:
        return [rows]
    first, second = sizes[: len(sizes) // 2], sizes[len(sizes) // 2 :]
    is_first = _nearer_end(rows, round(len(rows) * sum(first) / sum(sizes)), coords_um, keys)
    return _halve(rows[is_first], first, coords_um, keys) + _halve(rows[~is_first], second, coords_um, keys)


def _nearer_end(rows: IntArray, n_first: int, coords_um: FloatArray, keys: np.ndarray) -> BoolArray:
    """Mark the first `n_first` cells along the longer axis, those at the border by content, then by their place across, then by row."""
    places = _places(coords_um[rows], keys[rows])
    along, across = np.round(places, TIE_UM, out=places).T
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
    if (keys != keys[0]).any():
        weights = keys.astype(np.float64)
        weights /= 2.0**64  # in place: of large slices these arrays are what memory holds most of
        weights -= 0.5
    else:
        weights = (centred**2).sum(axis=1)
    spreads, axes = np.linalg.eigh(centred.T @ centred)
    pull = weights @ centred
    along = pull if spreads[1] - spreads[0] <= ISOTROPY * spreads[1] else axes[:, 1]
    along = along / max(float(np.linalg.norm(along)), np.finfo(float).tiny)
    both = np.stack([along, [-along[1], along[0]]])
    return centred @ (both * np.where(both @ pull >= 0, 1.0, -1.0)[:, None]).T
