"""Embedding a slice: every cell is represented once, by the sub-slice that owns it, with or without context."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from corpus.scales import extract_gene_scale, sub_slice_arrays
from corpus.sub_slices import SubSliceConfig, cut_sub_slices
from corpus.virtual_cells import make_virtual_cells
from downstream.embedding import Embedder, load_embedder, represent_cells
from stofm.batch import collate


@pytest.fixture
def embedder(tiny_run) -> Embedder:
    return load_embedder(tiny_run / "model", device="cpu")


def test_context_is_seen_and_its_own_representation_comes_from_its_owner(embedder, tiny_corpus):
    truth = tiny_corpus.truth("slice_0")
    scale = extract_gene_scale(truth.counts, truth.human_ids, truth.coords_um, embedder.vocab, embedder.scales.rank_value)
    embeddings = np.random.default_rng(0).normal(size=(len(scale.rows), 256)).astype(np.float32) / 16
    with_halo = SubSliceConfig(n_cells=100, halo_um=50.0)

    def represented(settings: SubSliceConfig, embeddings: np.ndarray = embeddings) -> np.ndarray:
        return represent_cells(scale, embeddings, replace(embedder, scales=embedder.scales.model_copy(update={"sub_slices": settings})))

    alone, together = represented(SubSliceConfig(n_cells=100)), represented(with_halo)
    assert np.isfinite(together).all()
    assert (np.abs(alone - together).max(axis=1) > 1e-6).all()
    one = cut_sub_slices(scale.coords_um, scale.keys, with_halo)[0]
    assert 0 < one.n_owned < len(one.rows)
    virtual = make_virtual_cells(scale.coords_um, embeddings, embedder.scales.virtual_cells)
    with torch.inference_mode():
        by_owner = embedder.model.se2_transformer(collate([sub_slice_arrays(scale, embeddings, virtual, one)])).cell_repr[0, : one.n_owned]
    np.testing.assert_allclose(together[one.owned], by_owner.numpy(), atol=1e-5)
