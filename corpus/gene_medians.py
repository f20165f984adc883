"""Exact medians of the values of every gene of a corpus: one pass over it, in bounded memory, however large it is.

A value becomes a key of 64 bits: its gene above, below it the bits of its float32, which sort as the numbers do while they are
positive. Equal keys are counted, not repeated, and what outgrows the budget goes to disk as a sorted run. At the end the medians
of all genes are found at once, by bisecting the 32 bits of their values: runs are searched, never merged, and nothing is rounded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from corpus.slice import IntArray

BYTES_PER_KEY = 64  # a key, how often it occurs, and what sorting both takes
GENE_SHIFT = np.uint64(32)

Keys = NDArray[np.uint64]
Counts = NDArray[np.int64]
Array = TypeVar("Array", Keys, Counts)


class ValueCounts:
    """How often each gene has each value: in memory up to a budget, in files of `folder` beyond it."""

    def __init__(self, folder: Path, *, memory_mb: float) -> None:
        self._folder = folder
        self.max_keys = max(4, int(memory_mb * 2**20) // BYTES_PER_KEY)
        self._pending: list[tuple[Keys, Counts]] = []
        self._runs: list[tuple[Keys, Counts]] = []  # sorted keys; how many values come before each, and in all

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
        self._runs += [_as_run(*counted) for counted in self._pending]
        self._pending = []
        return np.diff(self._n_before(np.arange(n_genes + 1, dtype=np.uint64) << GENE_SHIFT))

    def medians(self, genes: IntArray, n_values: IntArray) -> NDArray[np.float32]:
        """Return the median of each of `genes`, (n,) float32, as `numpy.median` has it; `n_values`, (n,), as counted and positive."""
        return (self._nth(genes, (n_values + 1) // 2) + self._nth(genes, n_values // 2 + 1)) / np.float32(2)

    def _nth(self, genes: IntArray, ranks: IntArray) -> NDArray[np.float32]:
        """Find for each gene the value of this rank, counted from 1: the least one with so many values up to it."""
        first = genes.astype(np.uint64) << GENE_SHIFT
        wanted = self._n_before(first) + ranks
        low, high = np.zeros(len(genes), np.uint64), np.full(len(genes), 2**32 - 1, np.uint64)
        for _ in range(32):
            middle = (low + high) >> np.uint64(1)
            is_enough = self._n_before((first | middle) + np.uint64(1)) >= wanted
            low, high = np.where(is_enough, low, middle + np.uint64(1)), np.where(is_enough, middle, high)
        return high.astype(np.uint32).view(np.float32)

    def _n_before(self, keys: Keys) -> Counts:
        """Count the values whose key is smaller than each of `keys`."""
        return sum((before[np.searchsorted(sorted_keys, keys)] for sorted_keys, before in self._runs), np.zeros(len(keys), np.int64))

    def _compact(self) -> None:
        """Make one sorted list of what is pending."""
        if len(self._pending) > 1:
            keys, counts = (np.concatenate(parts) for parts in zip(*self._pending, strict=True))
            order = np.argsort(keys, kind="stable")
            keys, counts = keys[order], counts[order]
            first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
            self._pending = [(keys[first], np.add.reduceat(counts, first))]

    def _spill(self) -> None:
        """Move what is pending to disk, where it is read through the page cache."""
        keys, before = _as_run(*self._pending.pop())
        self._runs.append((self._on_disk(keys, "keys"), self._on_disk(before, "before")))

    def _on_disk(self, array: Array, name: str) -> Array:
        path = self._folder / f"{len(self._runs)}.{name}"
        path.write_bytes(array.data)
        return np.memmap(path, array.dtype, "r")


def _as_run(keys: Keys, counts: Counts) -> tuple[Keys, Counts]:
    return keys, np.concatenate([[0], np.cumsum(counts)])
