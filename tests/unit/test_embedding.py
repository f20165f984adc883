"""Embedding a slice: every cell is told of by the sub-slice that owns it and, the less the farther away, by those that see it as context."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from corpus.halo import blend_weights
from corpus.scales import extract_gene_scale, sub_slice_arrays
from corpus.sub_slices import SubSliceConfig, cut_sub_slices
from corpus.virtual_cells import make_virtual_cells
from downstream.embedding import Embedder, load_embedder
from downstream.representation import represent_cells
from stofm.batch import collate


@pytest.fixture
def embedder(tiny_run) -> Embedder:
    return load_embedder(tiny_run / "model", device="cpu")


@pytest.mark.parametrize("context", [{"context_share": 0.0}, {"context_share": 0.7}, {"halo_um": 50.0}], ids=str)
def test_a_representation_is_the_weighted_mean_over_the_sub_slices_that_see_the_cell(embedder, tiny_corpus, context):
    truth = tiny_corpus.truth("slice_0")
    scale = extract_gene_scale(truth.counts, truth.human_ids, truth.coords_um, embedder.vocab, embedder.scales.rank_value)
    embeddings = np.random.default_rng(0).normal(size=(len(scale.rows), 256)).astype(np.float32) / 16
    settings = SubSliceConfig(n_cells=100, **context)
    found = represent_cells(scale, embeddings, replace(embedder, scales=embedder.scales.model_copy(update={"sub_slices": settings})))

    virtual = make_virtual_cells(scale.coords_um, embeddings, embedder.scales.virtual_cells)
    total, weight = np.zeros((len(embeddings), 256)), np.zeros(len(embeddings))
    for one in cut_sub_slices(scale.coords_um, scale.keys, settings):
        with torch.inference_mode():
            told = embedder.model.se2_transformer(collate([sub_slice_arrays(scale, embeddings, virtual, one)])).cell_repr[0, : len(one.rows)]
        weights = blend_weights(one.rows, one.n_owned, scale.coords_um)
        total[one.rows] += weights[:, None] * told.numpy()
        weight[one.rows] += weights
    assert weight.min() == 1
    assert (weight.max() > 1.5) == (context != {"context_share": 0.0})
    np.testing.assert_allclose(found, total / weight[:, None], atol=1e-5)
