"""Counts by row blocks: the same whatever the form of the matrix or the size of the block, and refused where they are none."""

from __future__ import annotations

import tracemalloc

import anndata
import h5py
import numpy as np
import pytest
from scipy.sparse import coo_matrix, csc_matrix, csr_array, csr_matrix

from corpus.readers import count_blocks
from corpus.readers.count_blocks import read_counts
from stofm.errors import BadSlice

COUNTS = np.random.default_rng(0).poisson(0.7, (41, 9))
ALL = np.ones(41, dtype=bool)


def int64_indices(counts):
    matrix = csr_matrix(counts)
    matrix.indices, matrix.indptr = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
    return matrix


def doubled(counts):
    """Every count as two entries of its column, out of order."""
    halves = csr_matrix(np.hstack([counts // 2, counts - counts // 2]))
    return csr_matrix((halves.data, halves.indices % counts.shape[1], halves.indptr), shape=counts.shape)


def on_disk(make, **dataset):
    def write(counts, path):
        with h5py.File(path, "w") as file:
            anndata.io.write_elem(file, "X", make(counts), dataset_kwargs=dataset)
        found = h5py.File(path)["X"]
        return found if isinstance(found, h5py.Dataset) else anndata.io.sparse_dataset(found)

    return write


def half_precision(counts, path):
    """As some exports store values: too short for scipy."""
    matrix = csr_matrix(counts)
    with h5py.File(path, "w") as file:
        anndata.io.write_elem(file, "X", matrix)
        del file["X/data"]
        file["X/data"] = matrix.data.astype(np.float16)
    return anndata.io.sparse_dataset(h5py.File(path)["X"])


FORMS = {
    "dense": lambda counts, path: counts,
    "float16": lambda counts, path: counts.astype(np.float16),
    "float64": lambda counts, path: counts.astype(np.float64),
    "csr": lambda counts, path: csr_matrix(counts),
    "csr array": lambda counts, path: csr_array(counts),
    "csr of 64-bit indices": lambda counts, path: int64_indices(counts),
    "csr of split entries": lambda counts, path: doubled(counts),
    "csc": lambda counts, path: csc_matrix(counts),
    "coo": lambda counts, path: coo_matrix(counts),
    "dense on disk": on_disk(lambda counts: counts.astype(np.float64), chunks=(7, 9), compression="gzip"),
    "csr on disk": on_disk(lambda counts: csr_matrix(counts.astype(np.float64))),
    "csc on disk": on_disk(lambda counts: csc_matrix(counts.astype(np.uint8))),
    "float16 on disk": half_precision,
}


@pytest.mark.parametrize("block", [1, 30, 2**24])
@pytest.mark.parametrize("form", FORMS)
def test_counts_are_the_same_in_every_form_and_block(form, block, tmp_path, monkeypatch):
    monkeypatch.setattr(count_blocks, "ENTRIES_PER_BLOCK", block)
    monkeypatch.setattr(count_blocks, "ROWS_PER_BLOCK", block)
    counts = read_counts(FORMS[form](COUNTS, tmp_path / "x.h5"), ALL)
    np.testing.assert_array_equal(counts.toarray(), COUNTS)
    assert counts.dtype == np.float32
    assert counts.indices.dtype == np.int32
    assert counts.nnz == np.count_nonzero(COUNTS)
    assert counts.has_sorted_indices
    counts.check_format(full_check=True)


@pytest.mark.parametrize("form", FORMS)
def test_only_the_rows_asked_for_are_read_and_tested(form, tmp_path, monkeypatch):
    monkeypatch.setattr(count_blocks, "ROWS_PER_BLOCK", 5)
    spoilt, is_read = COUNTS.copy(), np.arange(41) % 3 == 1
    spoilt[0] = -1
    np.testing.assert_array_equal(read_counts(FORMS[form](spoilt, tmp_path / "x.h5"), is_read).toarray(), COUNTS[is_read])


def test_a_dense_file_is_never_dense_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(count_blocks, "ENTRIES_PER_BLOCK", 2**16)
    counts = np.zeros((8_000, 500), dtype=np.float64)  # 32 MB
    counts[:, ::100] = 3
    matrix = FORMS["dense on disk"](counts, tmp_path / "x.h5")
    tracemalloc.start()
    found = read_counts(matrix, np.ones(8_000, dtype=bool))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.nnz == 40_000
    assert peak < 40_000 * 8 + 5 * 2**16 * 8  # the counts, and a few blocks


def test_the_matrix_of_the_user_is_left_as_it_was():
    given = doubled(COUNTS)
    before = (given.data.copy(), given.indices.copy())
    read_counts(given, ALL)
    np.testing.assert_array_equal(given.data, before[0])
    np.testing.assert_array_equal(given.indices, before[1])


def test_counts_beyond_16_bits_are_exact():
    assert read_counts(csr_matrix(np.array([[70_000, 2**24]], dtype=np.float64)), np.ones(1, dtype=bool)).toarray().tolist() == [[70_000, 2**24]]


@pytest.mark.parametrize("form", ["dense", "csr", "csc", "dense on disk", "csr on disk"])
@pytest.mark.parametrize(("value", "found"), [(0.5, "0.5"), (-1, "-1"), (np.nan, "nan"), (np.inf, "inf"), (2.0**25, "3.35544e\\+07")])
def test_what_is_no_count_is_refused(form, value, found, tmp_path):
    counts = COUNTS.astype(np.float64)
    counts[7, 3] = value
    with pytest.raises(BadSlice, match=f"counts: found {found}") as refusal:
        read_counts(FORMS[form](counts, tmp_path / "x.h5"), ALL)
    assert refusal.value.code == "NOT_COUNTS"


@pytest.mark.parametrize("matrix", [np.ones((2, 2), bool), np.array([["a"]]), "text"], ids=["bool", "text", "none"])
def test_what_is_no_matrix_of_numbers_is_refused(matrix):
    with pytest.raises(BadSlice, match="expected numbers, dense or sparse"):
        read_counts(matrix, np.ones(2, dtype=bool))


@pytest.mark.parametrize("form", ["csr on disk", "csc on disk"])
@pytest.mark.parametrize("place", ["indices", "indptr"])
def test_entries_outside_of_the_matrix_are_unreadable_input(form, place, tmp_path):
    FORMS[form](COUNTS, tmp_path / "x.h5").group.file.close()
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["X"][place][1] = 1_000
    with pytest.raises(BadSlice, match="not readable as counts") as refusal:
        read_counts(anndata.io.sparse_dataset(h5py.File(tmp_path / "x.h5")["X"]), ALL)
    assert refusal.value.code == "INPUT_UNREADABLE"


def test_a_damaged_block_of_a_file_is_unreadable_input(tmp_path):
    path = tmp_path / "x.h5"
    on_disk(csr_matrix, chunks=(40,), compression="gzip")(COUNTS, path)
    with h5py.File(path) as file:
        place = file["X/data"].id.get_chunk_info(1).byte_offset
    with path.open("r+b") as raw:
        raw.seek(place)
        raw.write(b"\x00" * 20)
    with pytest.raises(BadSlice, match="not readable as counts") as refusal:
        read_counts(anndata.io.sparse_dataset(h5py.File(path)["X"]), ALL)
    assert refusal.value.code == "INPUT_UNREADABLE"
