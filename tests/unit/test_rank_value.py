"""Rank-value encoding against a plain cell-by-cell oracle, and the ragged array that holds its result."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from corpus.rank_value import rank_value_encode
from stofm.errors import FormatError
from stofm.fields import GENE_LEVELS, GENE_TOKENS, N_TOKENS
from stofm.gene_tokens import LEVEL_SHIFT, LEVELS_PER_OCTAVE, N_LEVELS, GeneTokens, level_of_share, share_of_level


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
    assert parts.levels.tolist() == whole.levels.tolist()
    assert parts.offsets.tolist() == whole.offsets.tolist()


@pytest.mark.parametrize("max_tokens", [3, 2048])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_level_tells_the_share_of_all_molecules_of_a_cell_to_a_thirty_second_of_an_octave(max_tokens, dtype):
    rng = np.random.default_rng(4)
    counts = rng.poisson(1.0, (40, 25)) * rng.integers(1, 200, (40, 25))
    counts[7] = 0
    encoded = rank_value_encode(csr_matrix(counts.astype(dtype)), rng.lognormal(0, 1, 25), max_tokens=max_tokens)
    cells = np.repeat(np.arange(40), encoded.lengths)
    true = counts[cells, encoded.tokens.astype(int) - 2] / counts.sum(axis=1)[cells]
    assert np.abs(np.log2(share_of_level(encoded.levels) / true)).max() < 0.501 / LEVELS_PER_OCTAVE


def test_levels_end_where_a_gene_is_all_of_a_cell_or_hardly_there():
    shares = np.array([1, 2**-0.5, 2**-1, 2**-15, 2**-20, 1e-300])
    assert level_of_share(np.log(shares)).tolist() == [255, 247, 239, 15, 1, 1]
    levels = np.arange(1, N_LEVELS)
    assert level_of_share(np.log(share_of_level(levels))).tolist() == levels.tolist()


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
    assert peak - encoded.tokens.nbytes - encoded.levels.nbytes < 64 * (1 << 14) + 64 * n_cells + 100_000


def test_ties_keep_the_order_of_the_vocabulary():
    encoded = rank_value_encode(csr_matrix(np.array([[2, 4, 1, 3]])), np.array([1.0, 2.0, 0.5, 1.0]), max_tokens=9)
    assert encoded.tokens.tolist() == [5, 2, 3, 4]


def test_a_cell_without_counts_has_no_tokens():
    encoded = rank_value_encode(csr_matrix((2, 3)), np.ones(3), max_tokens=9)
    assert encoded.lengths.tolist() == [0, 0]


@pytest.fixture
def tokens() -> GeneTokens:
    levels = np.array([50, 60, 70, 80, 255], np.uint8)
    return GeneTokens.of_lengths(np.array([5, 6, 7, 8, 9], np.uint16), np.array([2, 0, 3], np.uint16), levels)


def test_taken_cells_keep_their_tokens_and_levels_in_the_order_asked(tokens):
    taken = tokens.take(np.array([2, 0, 2, 1]))
    assert taken.tokens.tolist() == [7, 8, 9, 5, 6, 7, 8, 9]
    assert taken.levels.tolist() == [70, 80, 255, 50, 60, 70, 80, 255]
    assert taken.lengths.tolist() == [3, 2, 3, 0]


def test_cells_joined_are_all_cells_in_order(tokens):
    joined = GeneTokens.joined([tokens, tokens.take(np.array([2]))])
    assert joined.tokens.tolist() == [5, 6, 7, 8, 9, 7, 8, 9]
    assert joined.levels.tolist() == [50, 60, 70, 80, 255, 70, 80, 255]
    assert joined.lengths.tolist() == [2, 0, 3, 3]


def test_padded_cells_start_with_cls_and_end_with_padding_and_hold_levels_above(tokens):
    padded = tokens.padded(np.array([1, 0, 2]), cls_token=99)
    assert (padded % (1 << LEVEL_SHIFT)).tolist() == [[99, 0, 0, 0], [99, 5, 6, 0], [99, 7, 8, 9]]
    assert (padded >> LEVEL_SHIFT).tolist() == [[0, 0, 0, 0], [0, 50, 60, 0], [0, 70, 80, 255]]
    without = GeneTokens(tokens.tokens, tokens.offsets)
    assert without.padded(np.array([0]), cls_token=99).tolist() == [[99, 5, 6]]


def test_a_record_of_before_there_were_levels_is_read_where_none_are_wanted(tokens):
    record = {GENE_TOKENS: tokens.tokens, N_TOKENS: tokens.lengths.astype(np.uint16)}
    assert GeneTokens.of_record(record, with_levels=False).levels is None
    with pytest.raises(FormatError, match="records without 'gene_levels', which this encoder reads; expected a corpus that has them"):
        GeneTokens.of_record(record, with_levels=True)
    assert GeneTokens.of_record(record | {GENE_LEVELS: tokens.levels}, with_levels=True).levels is tokens.levels
