"""What is hidden from the model and what it has to find again; nothing hidden may leak in by another way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from scipy.spatial import cKDTree

from corpus.slice import BoolArray, FloatArray, IntArray
from pretrain.config import SE2StageConfig
from stofm.fields import (
    CELL_EMBEDDINGS,
    COORDS_UM,
    IS_CONTEXT,
    MASK_TOKEN,
    N_LEADING_SPECIALS,
    VIRTUAL_COORDS_UM,
    VIRTUAL_EMBEDDINGS,
    VIRTUAL_OF_CELL,
    VIRTUAL_SIZES,
)

SPACING_NEIGHBORS = 6  # cells whose mean distance is the local spacing


def mask_gene_tokens(tokens: IntArray, *, cls_token: int, rate: float, rng: Generator) -> tuple[IntArray, BoolArray]:
    """Hide a share of the gene tokens of every cell.

    Parameters
    ----------
    tokens : (B, T) int64
        `<cls>` first, padded at the end.

    Returns
    -------
    (B, T) int64, with `<mask>` where hidden ; (B, T) bool, True where hidden
        Special tokens are never hidden.
    """
    is_gene = (tokens >= N_LEADING_SPECIALS) & (tokens != cls_token)
    is_hidden = is_gene & (rng.random(tokens.shape) < rate)
    return np.where(is_hidden, MASK_TOKEN, tokens), is_hidden


@dataclass(frozen=True, eq=False)
class MaskedSubSlice:
    """One sub-slice as the model sees it, and the truth.

    Attributes
    ----------
    seen : {name: array}
        Arrays as `stofm.batch.collate` takes them, and ``is_masked``.
    is_predicted : (n,) bool
        Cells whose embedding is to be predicted: those hidden and a few that are visible.
    embeddings : (n, 256) float32
        Their true embeddings.
    pairs : (P, 2) int64
        A moved cell and one of its true neighbours.
    pair_distances : (P,) float32
        Their true distances, in units of the sub-slice's spacing.
    moved : (M,) int64
        Cells that were moved.
    displacements : (M, 2) float32
        From where they are seen to their true places, in the same units.
    """

    seen: dict[str, np.ndarray]
    is_predicted: BoolArray
    embeddings: FloatArray
    pairs: IntArray
    pair_distances: FloatArray
    moved: IntArray
    displacements: FloatArray


def mask_sub_slice(arrays: dict[str, np.ndarray], config: SE2StageConfig, *, n_neighbors: int, rng: Generator) -> MaskedSubSlice:
    """Hide the embeddings of some cells and move others.

    The model finds neighbours among the places that it sees, so moved and unmoved cells have pairs of the same kind.
    Virtual cells are means over their members: hidden embeddings and moved places are taken out of them.

    Notes
    -----
    Source: masked cell modeling and pairwise distance recovery of SToFM. We differ in a learned mask vector, in noise
    and targets measured in the local spacing of cells, and in what was said above.
    """
    embeddings, coords = arrays[CELL_EMBEDDINGS].astype(np.float32), arrays[COORDS_UM]
    n = len(coords)
    owned = np.flatnonzero(~arrays.get(IS_CONTEXT, np.zeros(n, bool)))  # context is hidden and asked for in its own sub-slice
    order = rng.permutation(owned)
    n_masked = max(1, int(config.mask_rate * len(owned)))
    is_masked, is_predicted, is_moved = (np.zeros(n, bool) for _ in range(3))
    is_masked[order[:n_masked]] = True
    is_predicted[order[: n_masked + int(config.keep_rate * len(owned))]] = True

    spacing, neighbors, distances = _neighborhood(coords, n_neighbors)
    typical = float(np.median(spacing)) if n > 1 else 0.0
    if typical > 0:  # else all cells lie in one point, and there is no distance to recover
        is_moved[rng.permutation(owned)[: max(1, int(config.move_rate * len(owned)))]] = True
    moved_coords = coords + is_moved[:, None] * spacing[:, None] * config.move_sigma * rng.standard_normal((n, 2))
    moved = np.flatnonzero(is_moved)
    pairs = np.stack([np.repeat(moved, neighbors.shape[1]), neighbors[moved].ravel()], axis=1)
    seen = {
        CELL_EMBEDDINGS: np.where(is_masked[:, None], 0.0, embeddings),
        COORDS_UM: moved_coords.astype(np.float32),
        "is_masked": is_masked,
        **_virtual_without(arrays, embeddings, is_masked, is_moved),
    }
    pair_distances, displacements = distances[moved].ravel() / (typical or 1.0), (coords - moved_coords)[moved] / (typical or 1.0)
    return MaskedSubSlice(seen, is_predicted, embeddings, pairs, pair_distances.astype(np.float32), moved, displacements.astype(np.float32))


def _neighborhood(coords: FloatArray, n_neighbors: int) -> tuple[FloatArray, IntArray, FloatArray]:
    """Local spacing (n,), true neighbours (n, k) and their distances (n, k) of every cell, itself left out."""
    k = min(n_neighbors, len(coords) - 1)
    distances, indices = cKDTree(coords).query(coords, k=k + 1)
    distances, indices = distances.reshape(len(coords), k + 1), indices.reshape(len(coords), k + 1)
    is_self = indices == np.arange(len(coords))[:, None]
    is_self[~is_self.any(axis=1), -1] = True  # lost among coincident cells: drop the farthest instead
    distances, indices = distances[~is_self].reshape(len(coords), k), indices[~is_self].reshape(len(coords), k)
    return distances[:, :SPACING_NEIGHBORS].mean(axis=1) if k else np.zeros(len(coords)), indices, distances


def _virtual_without(arrays: dict[str, np.ndarray], embeddings: FloatArray, is_masked: BoolArray, is_moved: BoolArray) -> dict[str, np.ndarray]:
    """Virtual cells with hidden embeddings and moved places taken out; those left without a member are dropped."""
    sizes, of_cell = arrays[VIRTUAL_SIZES].astype(np.float64), arrays[VIRTUAL_OF_CELL].astype(np.int64)
    if not len(sizes):
        return {name: arrays[name] for name in (VIRTUAL_EMBEDDINGS, VIRTUAL_COORDS_UM)}

    def mean_without(means: FloatArray, values: FloatArray, is_out: BoolArray) -> tuple[FloatArray, FloatArray]:
        sums = means * sizes[:, None]
        np.subtract.at(sums, of_cell[is_out], values[is_out].astype(np.float64))
        left = sizes - np.bincount(of_cell[is_out], minlength=len(sizes))
        return (sums / np.maximum(left, 1)[:, None]).astype(np.float32), left

    new_embeddings, n_visible = mean_without(arrays[VIRTUAL_EMBEDDINGS].astype(np.float64), embeddings, is_masked)
    new_coords, n_unmoved = mean_without(arrays[VIRTUAL_COORDS_UM].astype(np.float64), arrays[COORDS_UM], is_moved)
    is_left = (n_visible > 0) & (n_unmoved > 0)
    return {VIRTUAL_EMBEDDINGS: new_embeddings[is_left], VIRTUAL_COORDS_UM: new_coords[is_left]}
