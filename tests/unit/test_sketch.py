"""Sketches: what they hold, what they survive, what they refuse to read."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from synth import random_counts

from corpus.sketch import MIN_GENES, N_HASHES, cell_sets, gene_words, read_sketch, sketch_path, sketch_slice, write_sketch
from stofm.errors import FormatError

GENES = np.array([f"ENSG{number:011d}" for number in range(40)])


def test_a_sketch_comes_back_as_it_was_written(tmp_path):
    sketch = sketch_slice("one", random_counts(0, 300, 40), GENES)
    path = sketch_path(tmp_path, "one")
    write_sketch(path, sketch)
    found = read_sketch(path)
    assert (found.slice_id, found.n_cells, found.n_sets, found.twin_share) == ("one", 300, sketch.n_sets, sketch.twin_share)
    assert all(
        np.array_equal(getattr(found, name), getattr(sketch, name)) for name in ("genes", "gene_counts", "hashes", "probe_genes", "probe_sizes")
    )


def test_equal_slices_give_sketches_of_equal_bytes(tmp_path):
    paths = [tmp_path / name for name in ("one", "two")]
    for path in paths:
        write_sketch(path, sketch_slice("one", random_counts(0, 300, 40), GENES))
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("data", [b"", b"no sketch", b"\x02" + bytes(7) + b"{}", None], ids=["empty", "text", "another format", "missing"])
def test_a_damaged_sketch_is_refused(tmp_path, data):
    path = tmp_path / "one.safetensors"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(FormatError, match=r"one\.safetensors: .*Build the corpus again"):
        read_sketch(path)


def test_the_hashes_of_a_large_slice_are_the_smallest_of_its_sets():
    counts = random_counts(1, 3000, 40)
    sketch, sets = sketch_slice("one", counts, GENES), np.unique(cell_sets(counts, gene_words(GENES)))
    assert sketch.n_sets == len(sets) > N_HASHES
    assert sketch.hashes.tolist() == sets[:N_HASHES].tolist()
    assert sketch.limit == sets[N_HASHES - 1]


def test_probes_are_the_cells_of_the_smallest_hashes():
    sketch = sketch_slice("one", random_counts(1, 600, 40), GENES)
    probes = sketch.probe_sets(np.ones(len(GENES), bool))
    assert probes.tolist() == sketch.hashes[: len(probes)].tolist()


def test_probes_on_fewer_genes_are_sets_of_the_slice_on_those_genes():
    counts, is_kept = random_counts(1, 600, 40), np.arange(40) % 3 > 0
    sets = cell_sets(csr_matrix(counts[:, is_kept]), gene_words(GENES[is_kept]))
    probes = sketch_slice("one", counts, GENES).probe_sets(is_kept)
    assert len(probes) > 200
    assert np.isin(probes, sets).all()


def test_cells_of_few_genes_have_no_set():
    counts = csr_matrix(np.tril(np.ones((8, 40))))  # cell i has i + 1 genes
    assert len(cell_sets(counts, gene_words(GENES))) == 8 - MIN_GENES + 1


def test_a_gene_without_a_word_is_no_part_of_a_set():
    counts, words = random_counts(2, 100, 40), gene_words(GENES)
    left = cell_sets(csr_matrix(counts[:, 10:]), words[10:])
    assert cell_sets(counts, np.where(np.arange(40) < 10, np.uint64(0), words)).tolist() == left.tolist()


def test_blocks_of_rows_change_nothing(monkeypatch, tmp_path):
    counts = random_counts(5, 1000, 40)
    write_sketch(tmp_path / "whole", sketch_slice("one", counts, GENES))
    monkeypatch.setattr("corpus.sketch.ROW_BLOCK", 77)
    write_sketch(tmp_path / "blocks", sketch_slice("one", counts, GENES))
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "blocks").read_bytes()
