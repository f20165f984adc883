"""Counts out of any matrix, in memory or on disk, by row blocks: never dense, never twice in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.sparse import csc_matrix, csr_matrix, issparse

from corpus.readers.input import reading
from corpus.slice import BoolArray, IntArray, require_counts
from stofm.errors import BadSlice

ENTRIES_PER_BLOCK, ROWS_PER_BLOCK = 2**24, 2**16  # of dense matrices, zeros among them; of sparse ones
SPARSE_SHARE = 16  # a sparse block has so many times fewer entries, each of which takes more on its way
LARGEST = 2**24  # whole numbers up to here are exact as float32


def read_counts(matrix: Any, is_read: BoolArray) -> csr_matrix:
    """Read the rows of a matrix that are asked for as counts.

    Parameters
    ----------
    matrix : (n_rows, n_genes)
        scipy sparse, numpy, or the same on disk (HDF5 dataset, AnnData's sparse dataset); any number type, any order.
    is_read : (n_rows,) bool

    Returns
    -------
    (is_read.sum(), n_genes) CSR, float32, molecules
        Sorted, unique columns; no stored zeros.

    Raises
    ------
    BadSlice
        ``NOT_COUNTS`` if entries are not whole, negative or no numbers; ``INPUT_UNREADABLE`` if the file is damaged.
    """
    matrix = _by_rows(matrix)
    with reading("counts", expected="a whole file", remedy="Fetch or write it again."):
        n_entries = int(_entries_per_row(matrix)[is_read].sum())
    n_rows, n_genes = int(is_read.sum()), matrix.shape[1]
    data, columns = np.empty(n_entries, np.float32), np.empty(n_entries, np.int32)
    indptr, row = np.zeros(n_rows + 1, np.int64), 0
    for block in _blocks(matrix, is_read):
        start, stop = indptr[row], row + block.shape[0]
        data[start : start + block.nnz], columns[start : start + block.nnz] = block.data, block.indices
        indptr[row + 1 : stop + 1] = start + block.indptr[1:]
        row = stop
    counts = csr_matrix((n_rows, n_genes), dtype=np.float32)
    counts.data, counts.indices = data[: indptr[-1]], columns[: indptr[-1]]
    counts.indptr = indptr if indptr[-1] > np.iinfo(np.int32).max else indptr.astype(np.int32)
    counts.has_canonical_format = True
    return counts


@dataclass(frozen=True, eq=False)
class StoredCounts:
    """Counts that stay in the matrix which holds them and are read by blocks of rows; as much of a CSR matrix as a `Slice` needs.

    Attributes
    ----------
    matrix : (n_rows, n_columns)
        As for `read_counts`.
    is_read : (n_rows,) bool
    is_gene : (n_columns,) bool
        Columns that are read.
    n_detected : (is_read.sum(),) int32
        Genes with counts in each row that is read.
    """

    matrix: Any
    is_read: BoolArray
    is_gene: BoolArray
    n_detected: IntArray

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.n_detected), int(self.is_gene.sum())

    def blocks(self) -> Iterator[csr_matrix]:
        """Yield all rows as `read_counts` gives them, (n, n_genes) CSR float32, block after block."""
        every = self.is_gene.all()
        return (block if every else block[:, self.is_gene] for block in _blocks(self.matrix, self.is_read))

    def __getitem__(self, is_kept: BoolArray) -> StoredCounts:
        rows = np.flatnonzero(self.is_read)[is_kept]
        is_read = np.zeros_like(self.is_read)
        is_read[rows] = True
        return replace(self, is_read=is_read, n_detected=self.n_detected[is_kept])

    def of_genes(self, is_gene: BoolArray) -> StoredCounts:
        """Return the counts of these columns, (n_columns,) bool, alone."""
        if is_gene.all():
            return self
        fewer = replace(self, is_gene=is_gene)
        return replace(fewer, n_detected=_n_detected(fewer.blocks()))


def store_counts(matrix: Any, is_read: BoolArray) -> StoredCounts:
    """Test the rows of a matrix that are asked for as `read_counts` does, and leave them where they are; of one stored by columns, in memory."""
    matrix = _by_rows(matrix)
    return StoredCounts(matrix, is_read, np.ones(matrix.shape[1], bool), _n_detected(_blocks(matrix, is_read)))


def blocks_of(counts: csr_matrix | StoredCounts) -> Iterator[csr_matrix]:
    """Yield the rows of a matrix, (n, n_genes) CSR, block after block."""
    if isinstance(counts, StoredCounts):
        return counts.blocks()
    return (counts[first:last] for first, last in _runs_of_rows(counts.indptr))


def n_detected(counts: csr_matrix | StoredCounts) -> IntArray:
    """Return how many genes have counts in each row, (n_cells,)."""
    return counts.n_detected if isinstance(counts, StoredCounts) else np.diff(counts.indptr)


def _n_detected(blocks: Iterator[csr_matrix]) -> IntArray:
    return np.concatenate([np.zeros(0, np.int32), *(np.diff(block.indptr).astype(np.int32) for block in blocks)])


def _blocks(matrix: Any, is_read: BoolArray) -> Iterator[csr_matrix]:
    """Tested rows, of those asked for, block after block."""
    n_rows, n_genes = matrix.shape
    is_dense = _format(matrix) == "dense"
    values, columns, indptr = (matrix, np.zeros(0, np.int32), np.zeros(0, np.int64)) if is_dense else _parts(matrix)
    n_dense = max(1, ENTRIES_PER_BLOCK // n_genes)
    runs = ((start, min(start + n_dense, n_rows)) for start in range(0, n_rows, n_dense)) if is_dense else _runs_of_rows(indptr)
    for start, stop in runs:
        here = is_read[start:stop]
        if not here.any():
            continue
        with reading("counts", expected="a whole file", remedy="Fetch or write it again."):
            if is_dense:
                block = np.asarray(values[start:stop])[here]
                require_counts(block)
                sparse = csr_matrix(block.astype(np.float32))
            else:
                first, last = int(indptr[start]), int(indptr[stop])
                offsets = indptr[start : stop + 1] - first
                found = values[first:last]
                is_entry = np.repeat(here, np.diff(offsets))
                require_counts(found[is_entry])
                sparse = csr_matrix((found.astype(np.float32), columns[first:last].astype(np.int32), offsets), shape=(len(here), n_genes))
                sparse.check_format(full_check=True)  # a file may state columns that are not there
                sparse = sparse if here.all() else sparse[here]
        sparse.sum_duplicates()
        sparse.eliminate_zeros()
        if sparse.data.max(initial=0) > LARGEST:
            raise BadSlice("NOT_COUNTS", f"counts: found {sparse.data.max():g}; expected molecule counts, at most {LARGEST} of a gene in a cell.")
        yield sparse


def _runs_of_rows(indptr: IntArray) -> Iterator[tuple[int, int]]:
    """Divide the rows of a sparse matrix into runs (first, last + 1) of bounded numbers of rows and entries, of one row at least."""
    start, n_rows = 0, len(indptr) - 1
    while start < n_rows:
        full = int(np.searchsorted(indptr, int(indptr[start]) + ENTRIES_PER_BLOCK // SPARSE_SHARE, side="right")) - 1
        stop = min(max(full, start + 1), start + ROWS_PER_BLOCK, n_rows)
        yield start, stop
        start = stop


def _format(matrix: Any) -> str:
    """``csr``, ``csc`` or ``dense``; other sparse formats in memory count as columns, for scipy sorts them out."""
    if issparse(matrix):
        return "csr" if matrix.format == "csr" else "csc"
    return matrix.format if hasattr(matrix, "group") else "dense"


def _parts(matrix: Any) -> tuple[Any, Any, IntArray]:
    """Values, positions and starts of a sparse matrix; only the starts are fetched from disk."""
    held = {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr} if issparse(matrix) else matrix.group
    return held["data"], held["indices"], held["indptr"][:]


def _by_rows(matrix: Any) -> Any:
    """A matrix of numbers as it is, or by rows if it is stored by columns; `BadSlice` if it holds no numbers."""
    if not hasattr(matrix, "dtype") or not np.issubdtype(matrix.dtype, np.number):
        dtype = getattr(matrix, "dtype", "no dtype")
        raise BadSlice("NOT_COUNTS", f"counts: found {type(matrix).__name__} of {dtype}; expected numbers, dense or sparse.")
    with reading("counts", expected="a whole file", remedy="Fetch or write it again."):
        return _rows_of_columns(matrix) if _format(matrix) == "csc" else matrix


def _rows_of_columns(matrix: Any) -> csr_matrix:
    """A matrix stored by columns, by rows; all of it, for its rows lie apart."""
    if issparse(matrix):
        return matrix.tocsr()
    values, rows, starts = _parts(matrix)
    found = values[:]  # scipy knows no float16
    by_column = csc_matrix((found if found.dtype.itemsize >= 4 else found.astype(np.float32), rows[:], starts), shape=matrix.shape)
    by_column.check_format(full_check=True)
    return by_column.tocsr()


def _entries_per_row(matrix: Any) -> IntArray:
    if _format(matrix) != "dense":
        return np.diff(_parts(matrix)[2])
    step = max(1, ENTRIES_PER_BLOCK // matrix.shape[1])
    parts = [np.count_nonzero(np.asarray(matrix[start : start + step]), axis=1) for start in range(0, matrix.shape[0], step)]
    return np.concatenate(parts)
