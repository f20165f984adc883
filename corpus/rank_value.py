"""Gene scale: rank-value encoding. A cell becomes its expressed genes, the most over-expressed first."""

from __future__ import annotations

import numpy as np
from pydantic import Field
from scipy.sparse import csr_matrix

from corpus.slice import FloatArray
from stofm.config import FrozenModel
from stofm.fields import N_LEADING_SPECIALS
from stofm.gene_tokens import GeneTokens

TIE_DIGITS = 9  # values equal to this many digits of their log are a tie: scaling all counts of a cell must not break one


class RankValueConfig(FrozenModel):
    """How much of a cell is kept."""

    max_tokens: int = Field(2048, ge=1, le=65535, description="Cells with more expressed genes keep their first `max_tokens`.")


def rank_value_encode(counts: csr_matrix, medians: FloatArray, *, max_tokens: int) -> GeneTokens:
    """Encode cells as gene tokens.

    Multiplying all counts of a cell by a constant changes nothing, so no depth normalisation is needed.

    Parameters
    ----------
    counts : (n_cells, G) CSR, molecules
        Genes in the order of the vocabulary, no stored zeros.
    medians : (G,) float64
        Non-zero median of each gene over the corpus; positive.
    max_tokens : int
        Cells with more expressed genes keep their first `max_tokens`.

    Notes
    -----
    Source: rank-value encoding of Geneformer, as SToFM uses it. We differ in ties, which keep the order of the
    vocabulary (there, the order depends on the machine's sort).
    """
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    over_expression = np.round(np.log(counts.data.astype(np.float64)) - np.log(medians)[counts.indices], TIE_DIGITS)
    order = np.lexsort((counts.indices, -over_expression, rows))
    rank = np.arange(len(order)) - np.repeat(counts.indptr[:-1], np.diff(counts.indptr))
    tokens = counts.indices[order][rank < max_tokens].astype(np.uint32) + N_LEADING_SPECIALS
    lengths = np.minimum(np.diff(counts.indptr), max_tokens)
    return GeneTokens.of_lengths(tokens, lengths)
