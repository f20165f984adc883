"""What each step sees: a pure function of (seed, epoch, ordinal), whatever the number of processes, whenever it is asked."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.random import Generator

from corpus.slice import IntArray
from corpus.view import View


class Order:
    """An endless stream over `n_units`, a new permutation every epoch."""

    def __init__(self, n_units: int, seed: int) -> None:
        self.n_units, self.seed = n_units, seed
        self._permutation = lru_cache(maxsize=2)(lambda epoch: generator(seed, epoch, -1).permutation(n_units))

    def __getitem__(self, ordinal: int) -> tuple[int, int]:
        """Return (epoch, unit) at a place of the stream."""
        epoch, place = divmod(ordinal, self.n_units)
        return epoch, int(self._permutation(epoch)[place])


def generator(seed: int, *key: int) -> Generator:
    """Return the random generator of one thing in one epoch of one run."""
    return np.random.default_rng([seed, *(part + 1 for part in key)])


def torch_seed(seed: int, *key: int) -> int:
    """Return the seed of torch's generator for one forward pass of one run."""
    return int(np.random.SeedSequence([seed, *key]).generate_state(1, np.uint64)[0])


def chunk_sub_slices(view: View, *, n_cells: int, n_tokens: int) -> list[tuple[int, int, int]]:
    """Divide the sub-slices of a token view into micro-batches of cells.

    Returns
    -------
    list of (record, chunk, n_chunks)
        Chunk `chunk` of `n_chunks` of a record; at least two cells each (records with one cell are left out), at most
        `n_cells`, and fewer where cells are long, to stay near `n_tokens` gene tokens.
    """
    units = []
    for record, place in enumerate(view.places):
        most = max(2, min(n_cells, n_tokens // (place.longest + 1)))
        n_chunks = max(1, min(-(-place.n_cells // most), place.n_cells // 2))
        if place.n_cells >= 2:
            units += [(record, chunk, n_chunks) for chunk in range(n_chunks)]
    return units


def cells_of_chunk(lengths: IntArray, chunk: int, n_chunks: int, rng: Generator) -> IntArray:
    """Return the cells of one chunk: of like length, so that little is padding; equals are shuffled by `rng`."""
    shuffled = rng.permutation(len(lengths))
    by_length = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    return np.array_split(by_length, n_chunks)[chunk]
