"""Few dimensions for what many slices vary in: axes that no slice has together need none of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from corpus.slice import FloatArray

ROUNDS = 20
SHARE_EVERYWHERE = 0.1
LEAST_WEIGHT = 1e-9  # of a direction beside the heaviest, or no slice lies along it


def shared_axes(of_slices: Sequence[FloatArray], n_dims: int) -> FloatArray:
    """Find a linear map to few dimensions that keeps, within every slice, the distances that its axes tell.

    Genes that no slice measures together, or axes along which no slice varies together, may lie in the same dimensions. So a map of 7,301 genes
    into 254 dimensions keeps 45 axes of each of 25 slices, 1,000 in all, where orthogonal axes would keep 254.

    Parameters
    ----------
    of_slices : sequence of (k_s, D) float64
        Orthogonal rows, the leading one first, as long as they count at the start. Of a slice that alone has more than `n_dims`, the first are kept.

    Returns
    -------
    (D, at most n_dims) float64
        X with A X X' A' as near as can be to the identity for the axes A, at unit length, of every slice; slices count the same. It starts with
        the leading directions of all axes. For one slice X spans its axes, by the iteration of Newton and Schulz (Higham 2008, Functions of
        Matrices, chapter 8); for many, every direction takes the mean of the steps of the slices that lie along it.
    """
    kept = [axes[:n_dims] for axes in of_slices]
    graded = np.vstack([axes / np.linalg.norm(axes) for axes in kept])  # (n, D)
    unit = [axes / np.linalg.norm(axes, axis=1, keepdims=True) for axes in kept]
    weights, basis = _directions(np.vstack([axes / len(axes) ** 0.5 for axes in unit]))  # (r,), (D, r)
    rows = [axes @ basis for axes in unit]  # (k_s, r) each
    leading = _directions(graded @ basis)[1][:, :n_dims]  # (r, d)
    everywhere = basis.T @ np.random.default_rng(0).standard_normal((len(basis), leading.shape[1])) / leading.shape[1] ** 0.5
    left, _, right = np.linalg.svd(leading.T @ everywhere)  # whatever directions span the leading ones, they are turned alike
    found = leading @ left @ right + SHARE_EVERYWHERE * everywhere  # from which a slice grows that has none of the leading ones
    for _ in range(ROUNDS):
        step = np.zeros_like(found)
        for own in rows:
            told = own @ found
            step += own.T @ (told @ (told.T @ told) - told) / len(own)
        found -= 0.5 * step / weights[:, None]
    return basis @ found


def _directions(rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Squared singular values, (r,), largest first, and right singular vectors, (D, r), of rows, (n, D)."""
    is_tall = len(rows) > rows.shape[1]
    weights, vectors = np.linalg.eigh(rows.T @ rows if is_tall else rows @ rows.T)  # ascending
    is_used = weights > LEAST_WEIGHT * weights[-1]
    weights, vectors = weights[is_used][::-1], vectors[:, is_used][:, ::-1]
    return weights, vectors if is_tall else rows.T @ vectors / weights**0.5
