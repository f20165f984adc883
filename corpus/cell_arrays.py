"""Arrays with a row per cell that are worked through in blocks, in memory or in scratch files of which memory holds only the rows at work."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from corpus.slice import FloatArray, IntArray
from stofm.errors import EnvironmentFault

BLOCK_CELLS = 8192


class CellArray(Protocol):
    """What an array in memory and one on disk share: rows are read and written by slices and by arrays of row numbers."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Any: ...
    def __setitem__(self, rows: Any, values: Any, /) -> None: ...


NewArray = Callable[[tuple[int, ...], DTypeLike], Any]  # shape, dtype -> a CellArray of zeros, as `numpy.zeros` makes one


class ArrayOnDisk:
    """An array in a file without a name, which is gone when its process is, however that ends.

    Rows are copied by plain reads and writes, for pages of a mapped file would count as memory of the process.

    Parameters
    ----------
    folder : Path
        On the disk that shall hold it; what is never written takes no room.
    shape, dtype
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.shape, self.dtype, self.ndim = shape, np.dtype(dtype), len(shape)
        self._row_bytes = self.dtype.itemsize * prod(shape[1:])
        file = TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed with the array
        weakref.finalize(self, file.close)
        file.truncate(self._row_bytes * shape[0])
        self._folder, self._file = folder, file.fileno()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, tuple):  # as dask asks
            return self[rows[0]][(slice(None), *rows[1:])]
        found = np.empty((_n_rows(rows, len(self)), *self.shape[1:]), self.dtype)
        for row, part in _runs(rows, len(self)):
            n_read = os.preadv(self._file, [found[part].data], row * self._row_bytes)
            assert n_read == found[part].nbytes
        return found

    def __setitem__(self, rows: Any, values: Any) -> None:
        shape = (_n_rows(rows, len(self)), *self.shape[1:])
        values = np.ascontiguousarray(np.broadcast_to(values, shape), self.dtype)
        for row, part in _runs(rows, len(self)):
            self._write(memoryview(values[part]).cast("B"), row * self._row_bytes)

    def _write(self, left: memoryview, place: int) -> None:
        while left:  # a disk that fills up takes a part before it says so
            try:
                n_written = os.pwrite(self._file, left, place)
            except OSError as error:
                raise EnvironmentFault(
                    f"scratch file in {self._folder}: {error.strerror}; expected room for arrays of all cells, one of them of "
                    f"{self._row_bytes * len(self) / 1e9:.1f} GB. Free some, or choose an output on another disk."
                ) from error
            left, place = left[n_written:], place + n_written


def _n_rows(rows: slice | IntArray, n: int) -> int:
    return len(range(*rows.indices(n))) if isinstance(rows, slice) else len(rows)


def _runs(rows: slice | IntArray, n: int) -> Iterator[tuple[int, slice]]:
    """Yield the first of each run of consecutive rows, and where the run lies among `rows`."""
    if isinstance(rows, slice):
        start, stop, step = rows.indices(n)
        assert step == 1
        if stop > start:
            yield start, slice(0, stop - start)
        return
    assert rows.dtype.kind in "iu"
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1) if len(rows) else rows
    for start, stop, row in zip(starts.tolist(), [*starts[1:].tolist(), len(rows)], rows[starts].tolist(), strict=False):
        yield row, slice(start, stop)


def row_blocks(n_cells: int, n_each: int = BLOCK_CELLS) -> list[slice]:
    """Rows to work through a block at a time."""
    return [slice(start, min(start + n_each, n_cells)) for start in range(0, n_cells, n_each)]


def sum_of_rows(rows: Callable[[slice], FloatArray], n_cells: int, dtype: DTypeLike) -> FloatArray:
    """Add up rows that come by blocks, (D,), to the bits of `numpy.sum` over all of them at once, which adds row after row."""
    total = rows(slice(0, 0)).sum(axis=0, dtype=dtype)
    for block in row_blocks(n_cells):
        total = np.add.reduce(np.concatenate([total[None], rows(block)]), axis=0, dtype=dtype)
    return total
