"""An order of the cells of a slice that belongs to the tissue: the same whatever the row order of the file or the way the tissue lies."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix

from corpus.slice import FloatArray, IntArray

CELLS_AT_A_TIME = 8_192
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def content_keys(counts: csr_matrix) -> np.ndarray:
    """Hash what each cell expresses.

    Parameters
    ----------
    counts : (n_cells, G) CSR
        Genes in the order of the vocabulary.

    Returns
    -------
    (n_cells,) uint64
        Equal for cells with equal counts, else different but for a chance of 2^-64; no geometry enters.
    """
    return np.concatenate([_keys(counts[start : start + CELLS_AT_A_TIME]) for start in range(0, max(1, counts.shape[0]), CELLS_AT_A_TIME)])


def _keys(counts: csr_matrix) -> np.ndarray:
    """As `content_keys`, of a block of cells; takes 40 bytes an entry."""
    words = _mix((counts.indices.astype(np.uint64) + np.uint64(1)) * GOLDEN ^ _mix(counts.data.astype(np.uint64)))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(words, dtype=np.uint64)])  # wraps around, on purpose
    return _mix(sums[counts.indptr[1:]] - sums[counts.indptr[:-1]])


def tissue_order(keys: np.ndarray, coords_um: FloatArray) -> IntArray:
    """Return the rows of a slice in an order that rotation, shift, reflection and row order do not change.

    Cells go by their content; cells of equal content by their distance from the centre of the tissue. Cells equal in
    both stay in row order: they are the only ones whose order a file can change.

    Parameters
    ----------
    keys : (n_cells,) uint64
        From `content_keys`.
    coords_um : (n_cells, 2) float64, micrometres
    """
    radius = np.linalg.norm(coords_um - coords_um.mean(axis=0), axis=1)
    return np.lexsort((np.round(radius, 3), keys))


def _mix(words: np.ndarray) -> np.ndarray:
    """Scramble 64-bit words (the finaliser of splitmix64, Steele et al. 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
