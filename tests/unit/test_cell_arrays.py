"""Arrays of cells on disk do what arrays in memory do, to the bit, and leave nothing behind."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from synth import random_counts

from corpus import scales
from corpus.cell_arrays import BLOCK_CELLS, ArrayOnDisk, sum_of_rows
from corpus.gene_vocab import GeneVocab
from corpus.rank_value import RankValueConfig
from corpus.readers import count_blocks
from corpus.readers.count_blocks import blocks_of, read_counts, store_counts
from corpus.scales import extract_gene_scale
from stofm.errors import EnvironmentFault

ROWS = {
    "slice": slice(3, 9),
    "to the end": slice(15, None),
    "all": slice(None),
    "none": slice(4, 4),
    "runs": np.array([4, 5, 6, 17, 2, 3, 0]),
    "increasing": np.arange(20),
    "backwards": np.arange(20)[::-1],
    "again and again": np.array([7, 7, 8, 7]),
    "no rows": np.zeros(0, np.int64),
}


@pytest.mark.parametrize("shape", [(20,), (20, 3)], ids=["numbers", "rows"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_rows_are_read_and_written_as_in_memory(rows, shape, tmp_path):
    on_disk, in_memory = ArrayOnDisk(tmp_path, shape, np.float32), np.zeros(shape, np.float32)
    values = np.arange(in_memory.size, dtype=np.float64).reshape(shape)
    for array in (on_disk, in_memory):
        array[:] = values
        array[rows] = array[rows] + 0.25
        array[rows] *= -2
        array[2:4] = np.nan
    assert on_disk[rows].dtype == np.float32
    np.testing.assert_array_equal(on_disk[rows], in_memory[rows])
    np.testing.assert_array_equal(on_disk[:], in_memory)


def test_what_was_never_written_is_zero(tmp_path):
    assert not ArrayOnDisk(tmp_path, (5, 2), np.float32)[:].any()


def test_a_write_that_the_disk_takes_in_parts_is_finished(tmp_path, monkeypatch):
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, place: whole(file, data[:7], place))
    array = ArrayOnDisk(tmp_path, (6, 5), np.float32)
    array[1:] = np.arange(25).reshape(5, 5)
    np.testing.assert_array_equal(array[1:].ravel(), np.arange(25))


def test_a_full_disk_is_said_in_one_line(tmp_path, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(EnvironmentFault, match="No space left on device; expected room for arrays of all cells"):
        ArrayOnDisk(tmp_path, (6, 5), np.float32)[:] = 1


def test_a_file_has_no_name_and_is_closed_with_its_array(tmp_path):
    array = ArrayOnDisk(tmp_path, (10, 4), np.float32)
    array[:] = 1
    assert list(tmp_path.iterdir()) == []
    file = array._file
    del array
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_cells", [1, BLOCK_CELLS, 2 * BLOCK_CELLS + 5])
def test_sums_by_blocks_are_those_of_numpy_to_the_bit(n_cells, dtype):
    values = np.random.default_rng(0).normal(size=(n_cells, 3)).astype(np.float32)
    assert sum_of_rows(lambda block: values[block], n_cells, dtype).tobytes() == values.sum(axis=0, dtype=dtype).tobytes()


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(count_blocks, "ENTRIES_PER_BLOCK", 16 * 40)
    monkeypatch.setattr(scales, "CELLS_TAKEN", 3)


def counts_of_genes() -> tuple[np.ndarray, np.ndarray]:
    """Counts of 12 genes in 60 cells, some without any, and which rows are read."""
    counts = random_counts(0, 60, 12).toarray()
    counts[[5, 40]] = 0
    return counts, np.arange(60) % 7 != 3


@pytest.mark.parametrize("is_gene", [np.ones(12, bool), np.arange(12) % 4 > 0], ids=["all genes", "some"])
def test_stored_counts_are_those_that_are_read(is_gene, small_blocks):
    counts, is_read = counts_of_genes()
    expected = read_counts(counts, is_read)[:, is_gene]
    stored = store_counts(counts, is_read).of_genes(is_gene)
    is_kept = stored.n_detected > 0
    assert stored.shape == expected.shape
    assert stored.n_detected.tolist() == np.diff(expected.indptr).tolist()
    assert not is_kept.all()
    blocks = list(blocks_of(stored[is_kept]))
    np.testing.assert_array_equal(np.vstack([block.toarray() for block in blocks]), expected[is_kept].toarray())


def test_the_gene_scale_is_the_same_from_memory_and_by_blocks_from_disk(tmp_path, request):
    counts, is_read = counts_of_genes()
    ids = np.array([f"ENSG{number:011d}" for number in range(12)])
    vocab, places = GeneVocab(ids[:10], np.linspace(1, 3, 10), ids[:10]), np.random.default_rng(0).uniform(0, 100, (int(is_read.sum()), 2))
    usual = extract_gene_scale(read_counts(counts, is_read), ids, places, vocab, RankValueConfig(max_tokens=4))
    request.getfixturevalue("small_blocks")
    new_array = lambda *shape_and_dtype: ArrayOnDisk(tmp_path, *shape_and_dtype)  # noqa: E731
    found = extract_gene_scale(store_counts(counts, is_read), ids, places, vocab, RankValueConfig(max_tokens=4), new_array=new_array)
    assert isinstance(found.tokens.tokens, ArrayOnDisk)
    for name in ("rows", "keys", "coords_um"):
        np.testing.assert_array_equal(getattr(found, name), getattr(usual, name))
    np.testing.assert_array_equal(found.tokens.tokens[:], usual.tokens.tokens)
    np.testing.assert_array_equal(found.tokens.offsets, usual.tokens.offsets)
    assert (found.n_cut, found.n_genes) == (usual.n_cut, usual.n_genes)
    assert usual.n_cut > 0
