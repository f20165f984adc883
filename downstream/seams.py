"""Seams: how much more two neighbouring cells differ because the border of a sub-slice runs between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from corpus.cell_arrays import CellArray, row_blocks
from corpus.slice import FloatArray, IntArray, StrArray

N_NEIGHBORS = 6
Differ = Callable[[IntArray, IntArray], FloatArray]  # rows of pairs (P,), (P,) -> how much the two cells of each differ (P,)


@dataclass(frozen=True)
class Seams:
    """What borders do to pairs of neighbours, measured on those that one tiling parts and the other leaves together.

    Attributes
    ----------
    n_pairs : int
    across, inside : float
        Mean difference of the cells of a pair where a border runs between them, and of the same pairs where none does.
    """

    n_pairs: int
    across: float
    inside: float

    @property
    def score(self) -> float:
        """Excess of the difference across borders: 0 where they leave no trace, 1 where they double it; NaN without pairs or differences."""
        return self.across / self.inside - 1 if self.n_pairs and self.inside else float("nan")


def measure_seams(coords_um: FloatArray, first: tuple[IntArray, Differ], second: tuple[IntArray, Differ]) -> Seams:
    """Compare two tilings of one tissue.

    The same pairs are looked at in both, so what tells the two cells apart anyway, a true border of the tissue among it, cancels out.

    Parameters
    ----------
    coords_um : (n, 2) float64, micrometres
    first, second : (sub-slice of each cell, (n,) int64, -1 where it was not read; how much cells differ in this tiling)
    """
    one, other = neighbor_pairs(coords_um)
    parted, known = [], np.ones(len(one), bool)
    for part_of, _ in (first, second):
        parted.append(part_of[one] != part_of[other])
        known &= (part_of[one] >= 0) & (part_of[other] >= 0)
    across, inside = [], []
    for borders, (_, differ_here), (_, differ_there) in ((parted[0] & ~parted[1], first, second), (parted[1] & ~parted[0], second, first)):
        i, j = one[borders & known], other[borders & known]
        across.append(differ_here(i, j))
        inside.append(differ_there(i, j))
    n_pairs = sum(map(len, across))
    return Seams(n_pairs, *(float(np.concatenate(values).mean()) if n_pairs else float("nan") for values in (across, inside)))


def neighbor_pairs(coords_um: FloatArray) -> tuple[IntArray, IntArray]:
    """Rows of every cell and each of its `N_NEIGHBORS` nearest cells, (P,) int64 each; unordered pairs once."""
    near = cKDTree(coords_um).query(coords_um, k=min(N_NEIGHBORS, len(coords_um) - 1) + 1)[1].reshape(len(coords_um), -1)
    pairs = np.unique(np.sort(np.column_stack([np.repeat(np.arange(len(near)), near.shape[1]), near.ravel()]), axis=1), axis=0)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    return pairs[:, 0], pairs[:, 1]


def cosine_difference(vectors: CellArray) -> Differ:
    """One minus the cosine between the vectors, (n, D), of two cells."""

    def unit(cells: IntArray) -> FloatArray:
        some = vectors[cells]
        return some / np.linalg.norm(some, axis=1, keepdims=True)

    def differ(i: IntArray, j: IntArray) -> FloatArray:
        cosines = [(unit(i[block]) * unit(j[block])).sum(axis=1, dtype=np.float64) for block in row_blocks(len(i))]
        return 1 - np.concatenate([np.zeros(0), *cosines])

    return differ


def label_difference(labels: StrArray) -> Differ:
    """1 where the labels, (n,), of two cells differ, else 0."""
    return lambda i, j: (labels[i] != labels[j]).astype(np.float64)
