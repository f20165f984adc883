"""Rank-value encoding against a plain cell-by-cell oracle, and the ragged array that holds its result."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from corpus.rank_value import rank_value_encode
from stofm.gene_tokens import GeneTokens


def oracle(row: np.ndarray, medians: np.ndarray, max_tokens: int) -> list[int]:
    """Gene tokens of one cell by exact arithmetic: most over-expressed first, ties in the order of the vocabulary."""
    genes = [gene for gene in range(len(row)) if row[gene] > 0]
    return [gene + 2 for gene in sorted(genes, key=lambda gene: (-Fraction(int(row[gene])) / Fraction(float(medians[gene])), gene))][:max_tokens]


@pytest.mark.parametrize("max_tokens", [1, 5, 2048])
@pytest.mark.parametrize("medians", ["many ties", "no ties"])
def test_every_cell_is_encoded_as_by_the_oracle(medians, max_tokens):
    rng = np.random.default_rng(1)
    counts = rng.poisson(1.0, (40, 25)) * rng.integers(1, 4, (40, 25))
    counts[7] = 0
    medians = rng.integers(1, 4, 25).astype(float) if medians == "many ties" else rng.lognormal(0, 1, 25)
    encoded = rank_value_encode(csr_matrix(counts.astype(np.float32)), medians, max_tokens=max_tokens)
    cells = np.split(encoded.tokens, encoded.offsets[1:-1])
    assert [cell.tolist() for cell in cells] == [oracle(row, medians, max_tokens) for row in counts]


@pytest.mark.parametrize(("n_threads", "block_entries"), [(1, 1), (1, 100), (3, 1), (3, 64), (2, 1 << 20)])
@pytest.mark.parametrize("max_tokens", [7, 2048])
def test_threads_and_blocks_change_no_token(max_tokens, n_threads, block_entries):
    counts = csr_matrix(np.random.default_rng(2).poisson(0.7, (60, 30)).astype(np.uint16))
    medians = np.random.default_rng(3).integers(1, 4, 30).astype(float)
    whole = rank_value_encode(counts, medians, max_tokens=max_tokens)
    parts = rank_value_encode(counts, medians, max_tokens=max_tokens, n_threads=n_threads, block_entries=block_entries)
    assert parts.tokens.tolist() == whole.tokens.tolist()
    assert parts.offsets.tolist() == whole.offsets.tolist()


@pytest.mark.parametrize("largest", [1, 65535, 2**32 - 1])
@pytest.mark.parametrize("medians", [[1e-300, 1.0, 1e300], [1e-3, 2e-3, 1e6]], ids=["extreme", "wide"])
def test_the_widest_range_of_counts_and_medians_is_ranked(largest, medians):
    counts = csr_matrix(np.array([[1, largest, 1], [largest, 1, largest]], np.uint32))
    encoded = rank_value_encode(counts, np.array(medians), max_tokens=9)
    assert encoded.tokens.tolist() == oracle(counts.toarray()[0], np.array(medians), 9) + oracle(counts.toarray()[1], np.array(medians), 9)


@pytest.mark.parametrize("n_cells", [200, 2000])
def test_memory_beside_the_result_is_that_of_a_block(n_cells):
    counts = csr_matrix(np.ones((n_cells, 1000), np.uint16))
    medians = np.ones(1000)
    tracemalloc.start()
    encoded = rank_value_encode(counts, medians, max_tokens=2048, block_entries=1 << 14)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert encoded.tokens.nbytes >= 4 * n_cells * 1000  # 8 MB of the larger slice
    assert peak - encoded.tokens.nbytes < 64 * (1 << 14) + 64 * n_cells + 100_000


def test_ties_keep_the_order_of_the_vocabulary():
    encoded = rank_value_encode(csr_matrix(np.array([[2, 4, 1, 3]])), np.array([1.0, 2.0, 0.5, 1.0]), max_tokens=9)
    assert encoded.tokens.tolist() == [5, 2, 3, 4]


def test_a_cell_without_counts_has_no_tokens():
    encoded = rank_value_encode(csr_matrix((2, 3)), np.ones(3), max_tokens=9)
    assert encoded.lengths.tolist() == [0, 0]


@pytest.fixture
def tokens() -> GeneTokens:
    return GeneTokens.of_lengths(np.array([5, 6, 7, 8, 9], np.uint16), np.array([2, 0, 3], np.uint16))


def test_taken_cells_keep_their_tokens_in_the_order_asked(tokens):
    taken = tokens.take(np.array([2, 0, 2, 1]))
    assert taken.tokens.tolist() == [7, 8, 9, 5, 6, 7, 8, 9]
    assert taken.lengths.tolist() == [3, 2, 3, 0]


def test_padded_cells_start_with_cls_and_end_with_padding(tokens):
    assert tokens.padded(np.array([1, 0, 2]), cls_token=99).tolist() == [[99, 0, 0, 0], [99, 5, 6, 0], [99, 7, 8, 9]]
