"""Does a model keep the laws it was made by? Made-up tissue moved, reordered and padded, and how far its representations then go."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from corpus.cell_order import tissue_order
from corpus.published_scheme import DIAGONAL, published_distances
from corpus.scales import GeneScale
from corpus.slice import FloatArray
from downstream.embedding import Embedder
from downstream.representation import represent_cells
from stofm.batch import SubSliceBatch, collate
from stofm.cell_encoder import embed_cells
from stofm.fields import CELL_EMBEDDINGS, COORDS_UM, EMBEDDING_DIM, N_LEADING_SPECIALS, VIRTUAL_COORDS_UM, VIRTUAL_EMBEDDINGS
from stofm.gene_tokens import N_LEVELS, GeneTokens
from stofm.geometry import Pairs
from stofm.published_batch import PublishedSubSlice, collate_published
from stofm.se2_transformer import SE2Transformer

MOST_CHANGE = 1e-4  # of a number of a representation; these are about 1, and rounding in float32 changes them by about 1e-6
SPACING_UM = 10.0
CELLS_OF_SLICE = 500
CELL, SUB_SLICE, SLICE = "cell", "sub-slice", "slice"


@dataclass(frozen=True, eq=False)
class MadeUp:
    """Cells and virtual cells: places (n, 2) and (V, 2) float64, micrometres, and embeddings (n, 256) and (V, 256) float32, unit vectors."""

    coords: FloatArray
    embeddings: FloatArray
    virtual_coords: FloatArray
    virtual_embeddings: FloatArray

    def moved(self, motion: Callable[[FloatArray], FloatArray]) -> MadeUp:
        return replace(self, coords=motion(self.coords), virtual_coords=motion(self.virtual_coords))

    def taken(self, order: np.ndarray) -> MadeUp:
        return replace(self, coords=self.coords[order], embeddings=self.embeddings[order])


def self_test(embedder: Embedder) -> dict[str, float]:
    """Return the largest change of a number of a cell's representation under each thing that must not matter; NaN where there is none.

    Of cells, as the cell encoder reads them: padding. Of a sub-slice, as the SE(2) transformer reads it: motions, order of the cells, other
    sub-slices in the batch, padding, a pair bias that is computed instead of read from a table. Of a slice, with its virtual cells and sub-slices
    made anew: motions and order of the rows. Published checkpoints promise less: their squares, scale and clusters follow the axes of the file, so
    slices are not tried, and sub-slices not shifted, for `<cls>` lies at the origin.
    """
    transformer, is_published = embedder.model.se2_transformer, embedder.scales.scheme == "published"
    motions = {"rotation": _turn, "reflection": lambda coords: coords * np.array([-1.0, 1.0])}
    if not is_published:
        motions["shift"] = lambda coords: coords + np.array([1234.5, -678.9])
    changes = _changes_of_cells(embedder) | _changes_of_sub_slice(transformer, motions, in_published_unit if is_published else lambda made: made)
    return changes if is_published else changes | _changes_of_slice(embedder, motions)


Motions = dict[str, Callable[[FloatArray], FloatArray]]


def _changes_of_cells(embedder: Embedder) -> dict[str, float]:
    encoder, vocab, rng = embedder.model.cell_encoder, embedder.vocab, np.random.default_rng(0)
    lengths = rng.integers(1, min(200, embedder.scales.rank_value.max_tokens) + 1, 12)
    genes = rng.integers(N_LEADING_SPECIALS, N_LEADING_SPECIALS + len(vocab.gene_ids), lengths.sum())
    cells = GeneTokens.of_lengths(genes, lengths, rng.integers(1, N_LEVELS, len(genes)))
    alone, together = (embed_cells(encoder, cells, cls_token=vocab.cls_token, tokens_per_batch=budget) for budget in (1, 10_000))
    return {f"{CELL}, padding": float(np.abs(together - alone).max())}


def _changes_of_sub_slice(transformer: SE2Transformer, motions: Motions, in_unit: Callable[[MadeUp], MadeUp]) -> dict[str, float]:
    one, other, larger = (in_unit(made_up(seed, n_cells)) for seed, n_cells in ((0, 150), (1, 150), (2, 230)))
    order = np.random.default_rng(3).permutation(len(one.coords))
    before = represent_first(transformer, [one])
    after = {what: represent_first(transformer, [one.moved(motion)]) for what, motion in motions.items()}
    after["order of cells"] = represent_first(transformer, [one.taken(order)])[np.argsort(order)]
    after["batch"], after["padding"] = represent_first(transformer, [one, other]), represent_first(transformer, [one, larger])
    after["exact bias"] = represent_first(copy.deepcopy(transformer), [one])  # a copy has weights of its own, and no table was made of these
    return {f"{SUB_SLICE}, {what}": float(np.abs(found - before).max()) for what, found in after.items()}


def _changes_of_slice(embedder: Embedder, motions: Motions) -> dict[str, float]:
    """Changes of the representations of a slice, cut so that it has several sub-slices."""
    n_each = min(CELLS_OF_SLICE // 2, embedder.scales.sub_slices.n_cells)
    smaller = embedder.scales.sub_slices.model_copy(update={"n_cells": n_each, "min_cells": None, "max_cells": None})
    embedder = replace(embedder, scales=embedder.scales.model_copy(update={"sub_slices": smaller}))
    tissue, keys = made_up(0, CELLS_OF_SLICE), np.random.default_rng(1).integers(0, 2**64, CELLS_OF_SLICE, dtype=np.uint64)
    order = np.random.default_rng(3).permutation(CELLS_OF_SLICE)

    def represent(made: MadeUp, keys: np.ndarray) -> FloatArray:
        rows = tissue_order(keys, made.coords)
        scale = GeneScale(rows, keys[rows], GeneTokens(np.zeros(0, np.uint32), np.zeros(len(rows) + 1, np.int64)), made.coords[rows])
        return represent_cells(scale, made.embeddings[rows], embedder)[np.argsort(rows)]

    before = represent(tissue, keys)
    after = {what: represent(tissue.moved(motion), keys) for what, motion in motions.items()}
    after["order of rows"] = represent(tissue.taken(order), keys[order])[np.argsort(order)]
    return {f"{SLICE}, {what}": float(np.abs(found - before).max()) for what, found in after.items()}


def made_up(seed: int, n_cells: int, n_virtual: int = 6) -> MadeUp:
    """Cells on a jittered grid around the origin, virtual cells anywhere among them."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(n_cells**0.5))
    grid = np.stack(np.divmod(np.arange(n_cells), side), axis=1) * SPACING_UM
    coords = np.concatenate([grid, rng.uniform(0, side * SPACING_UM, (n_virtual, 2))]) + rng.normal(0, SPACING_UM / 5, (n_cells + n_virtual, 2))
    coords -= coords[:n_cells].mean(axis=0)
    embeddings = rng.normal(size=(n_cells + n_virtual, EMBEDDING_DIM))
    embeddings = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)
    return MadeUp(coords[:n_cells], embeddings[:n_cells], coords[n_cells:], embeddings[n_cells:])


def in_published_unit(made: MadeUp) -> MadeUp:
    """The same, its bounding box as large as that of a slice to published checkpoints."""
    scale = DIAGONAL / np.linalg.norm(np.ptp(made.coords, axis=0))
    return made.moved(lambda coords: coords * scale)


@torch.inference_mode()
def represent_first(transformer: SE2Transformer, sub_slices: list[MadeUp]) -> FloatArray:
    """Read sub-slices as one batch; returns the representations of the cells of the first, (n, 256) float32."""
    read = _read_published if transformer.config.scheme == "published" else _read_tissue
    batch, pairs = read(sub_slices, next(transformer.parameters()).device)
    return transformer(batch, pairs).cell_repr[0][batch.is_cell[0]].float().cpu().numpy()


def _turn(coords: FloatArray) -> FloatArray:
    angle = np.deg2rad(37.0)
    return coords @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _read_tissue(sub_slices: list[MadeUp], device: torch.device) -> tuple[SubSliceBatch, None]:
    records = [
        {
            COORDS_UM: one.coords.astype(np.float32),
            CELL_EMBEDDINGS: one.embeddings,
            VIRTUAL_COORDS_UM: one.virtual_coords.astype(np.float32),
            VIRTUAL_EMBEDDINGS: one.virtual_embeddings,
        }
        for one in sub_slices
    ]
    return collate(records).to(device), None


def _read_published(sub_slices: list[MadeUp], device: torch.device) -> tuple[SubSliceBatch, Pairs]:
    inputs = [PublishedSubSlice(one.embeddings, one.virtual_embeddings, published_distances(one.coords, one.virtual_coords)) for one in sub_slices]
    return collate_published(inputs, device)
