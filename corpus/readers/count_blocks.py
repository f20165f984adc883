"""Counts out of any matrix, in memory or on disk, by row blocks: never dense, never twice in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.sparse import csc_matrix, csr_matrix, issparse

from corpus.readers.input import reading
from corpus.slice import BoolArray, IntArray, require_counts
from stofm.errors import BadSlice

ENTRIES_PER_BLOCK, ROWS_PER_BLOCK = 2**24, 2**16  # of dense matrices, of sparse ones
LARGEST = 2**24  # whole numbers up to here are exact as float32

Entries = tuple[np.ndarray, IntArray, IntArray]  # values and columns of some rows, and how many each row has


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
    if not hasattr(matrix, "dtype") or not np.issubdtype(matrix.dtype, np.number):
        dtype = getattr(matrix, "dtype", "no dtype")
        raise BadSlice("NOT_COUNTS", f"counts: found {type(matrix).__name__} of {dtype}; expected numbers, dense or sparse.")
    with reading("counts", expected="a whole file", remedy="Fetch or write it again."):
        if _format(matrix) == "csc":
            matrix = _rows_of_columns(matrix)
        n_entries = int(_entries_per_row(matrix)[is_read].sum())
    n_rows, n_genes = int(is_read.sum()), matrix.shape[1]
    data, columns = np.empty(n_entries, np.float32), np.empty(n_entries, np.int32)
    indptr, row = np.zeros(n_rows + 1, np.int64), 0
    for values, where, lengths in _blocks(matrix, is_read):
        start = indptr[row]
        data[start : start + len(values)], columns[start : start + len(values)] = values, where
        indptr[row + 1 : row + 1 + len(lengths)] = start + np.cumsum(lengths)
        row += len(lengths)
    counts = csr_matrix((n_rows, n_genes), dtype=np.float32)
    counts.data, counts.indices = data[: indptr[-1]], columns[: indptr[-1]]
    counts.indptr = indptr if indptr[-1] > np.iinfo(np.int32).max else indptr.astype(np.int32)
    counts.has_canonical_format = True
    return counts


def _blocks(matrix: Any, is_read: BoolArray) -> Iterator[Entries]:
    """Tested entries of the rows asked for, block after block."""
    n_rows, n_genes = matrix.shape
    is_dense = _format(matrix) == "dense"
    values, columns, indptr = (matrix, np.zeros(0, np.int32), np.zeros(0, np.int64)) if is_dense else _parts(matrix)
    step = max(1, ENTRIES_PER_BLOCK // n_genes) if is_dense else ROWS_PER_BLOCK
    for start in range(0, n_rows, step):
        here = is_read[start : start + step]
        if not here.any():
            continue
        with reading("counts", expected="a whole file", remedy="Fetch or write it again."):
            if is_dense:
                block = np.asarray(values[start : start + step])[here]
                require_counts(block)
                sparse = csr_matrix(block.astype(np.float32))
            else:
                first, last = int(indptr[start]), int(indptr[start + len(here)])
                offsets = indptr[start : start + len(here) + 1] - first
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
        yield sparse.data, sparse.indices, np.diff(sparse.indptr)


def _format(matrix: Any) -> str:
    """``csr``, ``csc`` or ``dense``; other sparse formats in memory count as columns, for scipy sorts them out."""
    if issparse(matrix):
        return "csr" if matrix.format == "csr" else "csc"
    return matrix.format if hasattr(matrix, "group") else "dense"


def _parts(matrix: Any) -> tuple[Any, Any, IntArray]:
    """Values, positions and starts of a sparse matrix; only the starts are fetched from disk."""
    held = {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr} if issparse(matrix) else matrix.group
    return held["data"], held["indices"], held["indptr"][:]


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
