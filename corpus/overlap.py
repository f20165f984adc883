"""Do two slices hold the same cells? What their gene sets have in common, and what that proves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from corpus.sketch import SliceSketch, WordArray, find_sorted
from corpus.slice import FloatArray, IntArray

Finding = Literal["copy", "overlap", "distinct", "unclear"]

COPY = 0.9  # share of a slice's sets that another one has: from here on it is a copy
MIN_OVERLAP, MIN_SHARED = 0.01, 10  # share and number of sets in common from where on two slices hold some of the same cells
MIN_SETS = 10  # fewer sets prove nothing
MAX_CHANCE = 0.5  # where more cells than this have a twin in their own slice, sets do not tell slices apart
PROFILES_ALIKE = 0.997  # correlation of log-profiles: sibling sections stay below, a slice quantified again is above


@dataclass(frozen=True)
class Overlap:
    """Gene sets that two slices have in common, and those of each; from sketches they are samples of equal rate."""

    n_shared: int
    n_first: int
    n_second: int

    @property
    def of_first(self) -> float:
        """Share of the first slice's sets that the second has too."""
        return self.n_shared / self.n_first if self.n_first else 0.0

    @property
    def of_second(self) -> float:
        return self.n_shared / self.n_second if self.n_second else 0.0


def overlap_of_sets(first: WordArray, second: WordArray) -> Overlap:
    """Compare two slices by the sets of all their cells."""
    a, b = np.unique(first), np.unique(second)
    return Overlap(len(np.intersect1d(a, b, assume_unique=True)), len(a), len(b))


def overlap_of_sketches(first: SliceSketch, second: SliceSketch) -> Overlap:
    """Compare two slices by their sketches; sees copies with the same genes."""
    limit = min(first.limit, second.limit)
    return overlap_of_sets(first.hashes[first.hashes <= limit], second.hashes[second.hashes <= limit])


def judge(n_shared: int, n_sets: int, chance: float) -> Finding:
    """Say what it means that `n_shared` of the `n_sets` sets of a slice are in another one.

    Parameters
    ----------
    chance : float
        Twin share of the other slice: what a slice without a common cell would share with it at most.
    """
    if n_sets < MIN_SETS or chance > MAX_CHANCE:
        return "unclear"
    if n_shared >= COPY * n_sets:
        return "copy"
    return "overlap" if n_shared >= max(MIN_SHARED, MIN_OVERLAP * n_sets, 2 * chance * n_sets) else "distinct"


def looks_requantified(n_genes: tuple[int, int], n_shared_genes: int, n_cells: tuple[int, int], correlation: float) -> bool:
    """Tell whether two slices of one panel and about one size have nearly the same profile."""
    has_one_panel = n_shared_genes >= 0.9 * max(n_genes)
    return has_one_panel and min(n_cells) >= 0.8 * max(n_cells) and correlation >= PROFILES_ALIKE


def shares_enough_genes(first: SliceSketch, second: SliceSketch, n_shared: int) -> bool:
    """Tell whether one slice can be a copy of the other: half of the smaller panel in common, or 200 genes."""
    return n_shared >= min(200, 0.5 * min(len(first.genes), len(second.genes)))


def profile_correlations(firsts: Sequence[SliceSketch], seconds: Sequence[SliceSketch]) -> tuple[FloatArray, IntArray]:
    """Correlate the log-profiles of slices over the genes that both measured.

    Returns
    -------
    (n_firsts, n_seconds) float64
        Pearson's r; 0 where it is not defined.
    (n_firsts, n_seconds) int64
        Genes that both measured.
    """
    genes = np.intersect1d(np.concatenate([one.genes for one in firsts]), np.concatenate([one.genes for one in seconds]))
    n, sum_a, sum_b, sum_aa, sum_bb, sum_ab = np.zeros((6, len(firsts), len(seconds)))
    for block in np.split(genes, range(2000, len(genes), 2000)):  # bounded memory
        (a, has_a), (b, has_b) = (_aligned(side, block) for side in (firsts, seconds))
        n += has_a @ has_b.T
        sum_a += a @ has_b.T
        sum_b += has_a @ b.T
        sum_aa += a**2 @ has_b.T
        sum_bb += has_a @ (b**2).T
        sum_ab += a @ b.T
    spread = (n * sum_aa - sum_a**2) * (n * sum_bb - sum_b**2)
    return np.where(spread > 0, (n * sum_ab - sum_a * sum_b) / np.sqrt(np.where(spread > 0, spread, 1.0)), 0.0), n.astype(np.int64)


def _aligned(sketches: Sequence[SliceSketch], genes: WordArray) -> tuple[FloatArray, FloatArray]:
    """Profiles on sorted `genes`, and 1 where the slice measured the gene; both (n_sketches, n_genes)."""
    values, has = np.zeros((2, len(sketches), len(genes)))
    for row, sketch in enumerate(sketches):
        columns, found = find_sorted(sketch.genes, genes)
        values[row, columns[found]], has[row, columns[found]] = sketch.log_profile[found], 1.0
    return values, has
