"""Medians of a corpus: exact, whatever the memory and the order in which the slices come."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix, random_array

from corpus.gene_medians import BYTES_PER_KEY, ValueCounts
from corpus.gene_vocab import GeneVocab, compute_gene_vocab, row_blocks

GENES = np.array([f"ENSG{number:011d}" for number in range(40)])
TINY_MB = 200 * BYTES_PER_KEY / 2**20  # 200 keys at a time


def made_up_slice(seed: int) -> tuple[csr_matrix, np.ndarray, np.ndarray]:
    """120 cells of some 30 of the genes; the depth of a cell varies a hundredfold."""
    rng = np.random.default_rng(seed)
    panel = np.sort(rng.choice(40, 30, replace=False))
    counts = rng.poisson(rng.gamma(1, 3, (120, 1)) * rng.gamma(0.5, 1, (1, 30)))
    return csr_matrix(counts.astype(np.uint16)), GENES[panel], np.char.add(f"s{seed}_", panel.astype(str))


def plain_vocab(slices, min_cells: int) -> GeneVocab:
    """The same with all values of the corpus in memory."""
    values: dict[str, list[np.ndarray]] = {}
    symbols: dict[str, str] = {}
    for counts, genes, names in slices:
        depth = np.maximum(np.asarray(counts.sum(axis=1)), 1)
        scaled = counts.toarray() * 10_000.0 / depth
        for column, (gene, name) in enumerate(zip(genes, names, strict=True)):
            values.setdefault(gene, []).append(scaled[scaled[:, column] > 0, column].astype(np.float32))
            symbols[gene] = min(name, symbols.get(gene, name))
    all_values = {gene: np.concatenate(parts) for gene, parts in values.items()}
    genes = sorted(gene for gene in all_values if len(all_values[gene]) >= min_cells)
    medians = [float(np.median(all_values[gene])) for gene in genes]
    return GeneVocab(np.array(genes), np.array(medians), np.array([symbols[gene] for gene in genes]))


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]], ids=["in order", "in another order"])
@pytest.mark.parametrize("memory_mb", [TINY_MB, 10 * TINY_MB, 1024], ids=["tiny", "small", "ample"])
@pytest.mark.parametrize("min_cells", [1, 200])
def test_memory_and_order_change_nothing(tmp_path, memory_mb, order, min_cells):
    slices = [made_up_slice(seed) for seed in range(3)]
    found = compute_gene_vocab([slices[number] for number in order], min_cells=min_cells, memory_mb=memory_mb, scratch=tmp_path)
    assert found.to_csv() == plain_vocab(slices, min_cells).to_csv()
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(2.0**-20, 2.0**40, width=32)), min_size=1, max_size=60), st.integers(0, 40))
def test_medians_are_those_of_numpy(tmp_path_factory, entries, n_keys):
    genes, values = np.array([gene for gene, _ in entries]), np.array([value for _, value in entries], dtype=np.float32)
    counts = ValueCounts(tmp_path_factory.mktemp("runs"), memory_mb=n_keys * BYTES_PER_KEY / 2**20)
    counts.add(genes, values)
    seen = np.unique(genes)
    n_values = counts.n_values(6)
    assert n_values.tolist() == np.bincount(genes, minlength=6).tolist()
    expected = [np.median(values[genes == gene]) for gene in seen]
    np.testing.assert_array_equal(counts.medians(seen, n_values[seen]), expected)


def test_what_outgrows_the_memory_lies_on_disk_and_equal_values_take_no_place(tmp_path):
    rng = np.random.default_rng(0)
    counts = ValueCounts(tmp_path, memory_mb=1000 * BYTES_PER_KEY / 2**20)
    counts.add(np.zeros(100_000, np.int64), rng.integers(1, 400, 100_000).astype(np.float32))
    assert list(tmp_path.iterdir()) == []
    counts.add(np.ones(5_000, np.int64), rng.random(5_000, dtype=np.float32))
    assert len(list(tmp_path.iterdir())) >= 2
    assert counts.n_values(2).tolist() == [100_000, 5_000]


@pytest.mark.parametrize("max_entries", [1, 7, 50, 10_000])
def test_blocks_of_rows_add_up_and_stay_within_their_size(max_entries):
    counts = csr_matrix(random_array((40, 30), density=0.2, random_state=np.random.default_rng(0)))
    blocks = list(row_blocks(counts, max_entries))
    assert np.concatenate([block.toarray() for block in blocks]).tolist() == counts.toarray().tolist()
    assert all(block.nnz <= max_entries or block.shape[0] == 1 for block in blocks)
