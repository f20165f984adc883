"""The vocabulary: exact medians, a CSV that reads back to the bit, and no damaged table taken for a whole one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from corpus.gene_vocab import GeneVocab, compute_gene_vocab, merge_genes, read_gene_vocab
from stofm.errors import ConfigError, DataError, FormatError

GENES = np.array([f"ENSG{number:011d}" for number in range(12)])


@pytest.fixture
def slices() -> list[tuple[csr_matrix, np.ndarray, np.ndarray]]:
    """Two slices of other panels, some genes shared, one seen nowhere."""
    rng = np.random.default_rng(0)
    panels = [np.array([0, 1, 2, 3, 4, 5, 11]), np.array([3, 4, 5, 6, 7, 8])]
    counts = [csr_matrix(rng.poisson(0.7, (n, len(panel))) * (panel != 11)) for n, panel in zip((30, 41), panels, strict=True)]
    return [
        (one, GENES[panel], np.char.add(f"from{number}_", panel.astype(str))) for number, (one, panel) in enumerate(zip(counts, panels, strict=True))
    ]


@pytest.fixture
def vocab(slices) -> GeneVocab:
    return compute_gene_vocab(slices, min_cells=1)


def test_medians_are_those_of_numpy_over_the_cells_that_express_the_gene(slices, vocab):
    values: dict[str, list[float]] = {gene: [] for gene in vocab.gene_ids}
    for counts, genes, _ in slices:
        dense = counts.toarray().astype(float)
        scaled = 10_000 * dense / np.maximum(dense.sum(axis=1, keepdims=True), 1)
        for column, gene in enumerate(genes):
            values.get(gene, []).extend(scaled[dense[:, column] > 0, column])
    np.testing.assert_allclose(vocab.medians, [np.median(values[gene]) for gene in vocab.gene_ids], rtol=1e-6)


def test_genes_are_those_seen_sorted_with_special_tokens_around(vocab):
    assert vocab.gene_ids.tolist() == GENES[:9].tolist()
    assert (vocab.column_of[GENES[0]], vocab.cls_token, vocab.n_tokens) == (0, 11, 12)
    assert vocab.symbols[3] == "from0_3"


def test_genes_of_too_few_cells_get_no_token(slices):
    cells = {gene: sum(int((counts[:, genes == gene] > 0).sum()) for counts, genes, _ in slices) for gene in GENES}
    least = sorted(cells.values())[6]
    assert compute_gene_vocab(slices, min_cells=least).gene_ids.tolist() == [gene for gene in GENES if cells[gene] >= least]


def test_a_corpus_without_a_gene_is_refused(slices):
    with pytest.raises(DataError, match=r"no gene is seen in 1000 cells; expected at least one. Lower `genes.min_cells`"):
        compute_gene_vocab(slices, min_cells=1000)


def test_the_csv_reads_back_to_the_bit(tmp_path, vocab):
    (tmp_path / "vocab.csv").write_text(vocab.to_csv())
    again = read_gene_vocab(tmp_path / "vocab.csv")
    assert again.to_csv() == vocab.to_csv()
    assert again.sha256 == vocab.sha256
    np.testing.assert_array_equal(again.medians, vocab.medians)
    assert again.symbols.tolist() == vocab.symbols.tolist()


def test_a_csv_without_symbols_is_taken(tmp_path):
    (tmp_path / "vocab.csv").write_text("gene_id,token,median\nENSG1,2,0.5\nENSG2,3,1\n")
    assert read_gene_vocab(tmp_path / "vocab.csv").symbols.tolist() == ["", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gene,token\nENSG1,2\n", "found columns"),
        ("", "found columns None"),
        ("gene_id,token,median\n", "expected genes with tokens 2, 3"),
        ("gene_id,token,median\nENSG1,3,1.0\n", "expected genes with tokens 2, 3"),
        ("gene_id,token,median\nENSG2,3,1.0\nENSG1,2,1.0\n", "expected genes with tokens 2, 3"),
        ("gene_id,token,median\nENSG1,2,0.0\n", "positive medians"),
        ("gene_id,token,median\nENSG1,2,nan\n", "positive medians"),
        ("gene_id,token,median\nENSG1,two,1.0\n", "expected whole tokens"),
        ("gene_id,token,median\nENSG1,2,1.0\nENSG1,3,1.0\n", "found a gene twice"),
        ("gene_id,token,median\nENSG1,2,1.0\nENSG2,3\n", "vocabulary .*expected"),
        ("gene_id,token,median\nENSG1,2,1.0\nENSG2,3,1.\xff\n", "vocabulary .*expected"),
    ],
    ids=["columns", "empty", "no genes", "first token", "order", "zero", "nan", "word", "twice", "cut off", "no utf-8"],
)
def test_a_damaged_table_is_refused(tmp_path, text, message):
    (tmp_path / "vocab.csv").write_text(text, encoding="latin-1")
    with pytest.raises(FormatError, match=message):
        read_gene_vocab(tmp_path / "vocab.csv")


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.csv: no such file"):
        read_gene_vocab(tmp_path / "none.csv")


def test_counting_sums_columns_of_one_gene_and_leaves_out_the_rest(vocab):
    counts = csr_matrix(np.array([[1, 2, 4, 8], [0, 0, 0, 16]]))
    of_vocab = vocab.count(counts, np.array([GENES[2], "", GENES[2], "ENSG_unknown"]))
    assert of_vocab.shape == (2, 9)
    assert of_vocab.toarray()[0].tolist() == [0, 0, 5, 0, 0, 0, 0, 0, 0]
    assert of_vocab.nnz == 1


def test_merging_drops_unmapped_columns_and_sums_equal_ones():
    merged, genes = merge_genes(csr_matrix(np.array([[1, 2, 4, 8]])), np.array(["b", "", "a", "b"]))
    assert genes.tolist() == ["a", "b"]
    assert merged.toarray().tolist() == [[4, 9]]
