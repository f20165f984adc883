"""Gene scale: rank-value encoding. A cell becomes its expressed genes, the most over-expressed first, each with its level."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from pydantic import Field
from scipy.sparse import csr_matrix

from corpus.slice import FloatArray, IntArray
from stofm.config import FrozenModel
from stofm.fields import N_LEADING_SPECIALS
from stofm.gene_tokens import GeneTokens, level_of_share

TIE_DIGITS = 9  # values equal to this many digits of their log are a tie: scaling all counts of a cell must not break one
BLOCK_ENTRIES = 1 << 15  # expressed genes sorted at once: small enough for the processor's cache, and all that memory depends on


class RankValueConfig(FrozenModel):
    """How much of a cell is kept."""

    max_tokens: int = Field(2048, ge=1, le=65535, description="Cells with more expressed genes keep their first `max_tokens`.")


def rank_value_encode(
    counts: csr_matrix, medians: FloatArray, *, max_tokens: int, n_threads: int = 1, block_entries: int = BLOCK_ENTRIES
) -> GeneTokens:
    """Encode cells as gene tokens, and how much of the cell's molecules are of each gene as levels.

    Multiplying all counts of a cell by a constant changes neither, so no depth normalisation is needed.

    Parameters
    ----------
    counts : (n_cells, G) CSR, molecules
        Genes in the order of the vocabulary, no stored zeros.
    medians : (G,) float64
        Non-zero median of each gene over the corpus; positive.
    max_tokens : int
        Cells with more expressed genes keep their first `max_tokens`.
    n_threads, block_entries : int
        Speed and memory; the tokens are the same. Beside its result, a thread holds some 50 bytes per entry of its block (at least one cell).

    Notes
    -----
    Source: rank-value encoding of Geneformer, as SToFM uses it. We differ in levels, in ties, which keep the order of the
    vocabulary (there, the order depends on the machine's sort), and in speed: cell, over-expression and gene are the
    high, middle and low bits of one integer, so that sorting integers sorts the cells of a block all at once.
    """
    n_genes = np.diff(counts.indptr)
    lengths = np.minimum(n_genes, max_tokens)
    of_tokens, of_levels = np.empty(int(lengths.sum()), np.uint32), np.empty(int(lengths.sum()), np.uint8)
    encoded = GeneTokens.of_lengths(of_tokens, lengths, of_levels)
    if not counts.nnz:
        return encoded
    log_medians = np.log(medians)
    extremes = np.log(np.array([counts.data.min(), counts.data.max()], np.float64)) - [log_medians.max(), log_medians.min()]
    least, most = _fixed_point(extremes)
    # One to spare at both ends: numpy's log of one array and of another may differ in the last bit.
    value_bits, gene_bits = int(most - least + 2).bit_length(), (counts.shape[1] - 1).bit_length()

    def encode(cells: tuple[int, int]) -> None:
        first, last = cells
        entries = slice(counts.indptr[first], counts.indptr[last])
        genes, of_cells = counts.indices[entries], n_genes[first:last]
        log_depth = np.log(np.maximum(np.bincount(np.repeat(np.arange(last - first), of_cells), counts.data[entries], last - first), 1))
        over_expression = np.log(counts.data[entries], dtype=np.float64)
        over_expression -= log_medians[genes]
        keys = np.subtract(most + 1, _fixed_point(over_expression), out=over_expression).astype(np.int64)
        keys <<= gene_bits
        keys |= genes
        keys |= np.repeat(np.arange(last - first) << (value_bits + gene_bits), of_cells)
        keys.sort()
        if of_cells.max() > max_tokens:
            rank = np.arange(len(keys)) - np.repeat(np.cumsum(of_cells) - of_cells, of_cells)
            keys = keys[rank < max_tokens]
        kept = slice(encoded.offsets[first], encoded.offsets[last])
        genes = keys & ((1 << gene_bits) - 1)
        of_tokens[kept] = genes
        of_tokens[kept] += N_LEADING_SPECIALS
        keys >>= gene_bits
        keys &= (1 << value_bits) - 1
        log_share = np.subtract(most + 1, keys, out=over_expression[: len(keys)])
        log_share /= 10.0**TIE_DIGITS
        log_share += log_medians[genes]  # the logarithm of the count again
        log_share -= np.repeat(log_depth, lengths[first:last])
        of_levels[kept] = level_of_share(log_share)

    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(encode, _blocks(counts.indptr, block_entries, max_cells=1 << (63 - value_bits - gene_bits))))
    return encoded


def _fixed_point(logs: FloatArray) -> FloatArray:
    """Turn logs, in place, into whole numbers of their last digit that counts."""
    logs *= 10.0**TIE_DIGITS
    return np.rint(logs, out=logs)


def _blocks(indptr: IntArray, n_entries: int, *, max_cells: int) -> Iterator[tuple[int, int]]:
    """Divide cells into runs (first, last + 1) of at most `n_entries` entries and `max_cells` cells, of at least one cell."""
    first, n_cells = 0, len(indptr) - 1
    while first < n_cells:
        last = int(np.searchsorted(indptr, int(indptr[first]) + n_entries, side="right")) - 1
        last = min(max(last, first + 1), first + max_cells, n_cells)
        yield first, last
        first = last
