"""Exact medians of the values of every gene of a corpus: one pass over it, in bounded memory, however large it is.

A value becomes a key of 64 bits: its gene above, below it the bits of its float32, which sort as the numbers do while they are
positive. Equal keys are counted, not repeated, and what outgrows the budget goes to disk as a sorted run. At the end the medians
of many genes are found at once, by bisecting the 32 bits of their values: runs are searched, never merged, and nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from corpus.slice import IntArray

BYTES_PER_KEY = 64  # a key, how often it occurs, and what sorting both takes
GENE_SHIFT = np.uint64(32)

Keys = NDArray[np.uint64]
Counts = NDArray[np.int64]


class ValueCounts:
    """How often each gene has each value: in memory up to a budget, in files of `folder` beyond it."""

    def __init__(self, folder: Path, *, memory_mb: float) -> None:
        self._folder = folder
        self.max_keys = max(4, int(memory_mb * 2**20) // BYTES_PER_KEY)
        self._pending: list[tuple[Keys, Counts]] = []
        self._n_runs = 0

    def add(self, genes: IntArray, values: NDArray[np.float32]) -> None:
        """Count values, (n,) positive, of genes, (n,), that are numbered from 0."""
        for start in range(0, len(genes), self.max_keys // 2):
            part = slice(start, start + self.max_keys // 2)
            keys = (genes[part].astype(np.uint64) << GENE_SHIFT) | values[part].view(np.uint32)
            self._pending.append(np.unique(keys, return_counts=True))
            if sum(len(keys) for keys, _ in self._pending) > self.max_keys:
                self._compact()
                if len(self._pending[0][0]) > self.max_keys // 2:
                    self._spill()

    def n_values(self, n_genes: int) -> IntArray:
        """Return how many values each gene has, (n_genes,) int64; nothing can be added afterwards."""
        self._compact()
        self._spill()
        first = np.arange(n_genes + 1, dtype=np.uint64) << GENE_SHIFT
        places = ((before, np.searchsorted(keys, first)) for keys, before in self._open_runs())
        return sum((np.diff(before[place]) for before, place in places), np.zeros(n_genes, np.int64))

    def medians(self, genes: IntArray, n_values: IntArray) -> NDArray[np.float32]:
        """Return the median of each of `genes`, (n,) float32, as `numpy.median` has it; `n_values`, (n,), as counted and positive.

        As many genes are looked at together as fit the budget, or one.
        """
        order = np.argsort(genes)
        block = np.cumsum(n_values[order]) // self.max_keys
        found = np.empty(len(genes), np.float32)
        for number in np.unique(block):
            members = order[block == number]
            runs = self._runs_of(int(genes[members[0]]), int(genes[members[-1]]))
            ranks = ((n_values[members] + 1) // 2, n_values[members] // 2 + 1)
            found[members] = (_nth(runs, genes[members], ranks[0]) + _nth(runs, genes[members], ranks[1])) / np.float32(2)
        return found

    def _runs_of(self, first: int, last: int) -> list[tuple[Keys, Counts]]:
        """Copy what belongs to the genes from `first` to `last` into memory."""
        bounds = np.array([first, last + 1], dtype=np.uint64) << GENE_SHIFT
        runs = []
        for keys, before in self._open_runs():
            start, stop = np.searchsorted(keys, bounds)
            runs.append((np.array(keys[start:stop]), np.array(before[start : stop + 1])))
        return runs

    def _open_runs(self) -> Iterator[tuple[Keys, Counts]]:
        """Map the runs, one at a time: what all of them take together may be far beyond the budget."""
        for number in range(self._n_runs):
            yield np.memmap(self._path(number, "keys"), np.uint64, "r"), np.memmap(self._path(number, "before"), np.int64, "r")

    def _compact(self) -> None:
        """Make one sorted list of what is pending."""
        if len(self._pending) > 1:
            keys, counts = (np.concatenate(parts) for parts in zip(*self._pending, strict=True))
            order = np.argsort(keys, kind="stable")
            keys, counts = keys[order], counts[order]
            first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
            self._pending = [(keys[first], np.add.reduceat(counts, first))]

    def _spill(self) -> None:
        """Move what is pending to disk as a run: its keys, and how many values come before each and in all."""
        for keys, counts in self._pending:
            self._path(self._n_runs, "keys").write_bytes(keys.data)
            self._path(self._n_runs, "before").write_bytes(np.concatenate([[0], np.cumsum(counts)]).data)
            self._n_runs += 1
        self._pending = []

    def _path(self, run: int, name: str) -> Path:
        return self._folder / f"{run}.{name}"


def _nth(runs: list[tuple[Keys, Counts]], genes: IntArray, ranks: IntArray) -> NDArray[np.float32]:
    """Find for each gene the value of this rank, counted from 1: the least one with so many values up to it."""
    first = genes.astype(np.uint64) << GENE_SHIFT
    wanted = _n_before(runs, first) + ranks
    low, high = np.zeros(len(genes), np.uint64), np.full(len(genes), 2**32 - 1, np.uint64)
    for _ in range(32):
        middle = (low + high) >> np.uint64(1)
        is_enough = _n_before(runs, (first | middle) + np.uint64(1)) >= wanted
        low, high = np.where(is_enough, low, middle + np.uint64(1)), np.where(is_enough, middle, high)
    return high.astype(np.uint32).view(np.float32)


def _n_before(runs: list[tuple[Keys, Counts]], keys: Keys) -> Counts:
    """Count the values whose key is smaller than each of `keys`."""
    return sum((before[np.searchsorted(sorted_keys, keys)] for sorted_keys, before in runs), np.zeros(len(keys), np.int64))
