"""The self-test of a model: it passes for a sound one of either scheme, and sees a broken one."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from published_checkpoint import random_weights, write_checkpoint

from corpus.gene_vocab import GeneConfig
from downstream import self_test as module
from downstream.embedding import Embedder, load_embedder
from downstream.model_import import import_published
from downstream.self_test import MOST_CHANGE, in_published_unit, made_up, represent_first, self_test
from stofm.cell_encoder import gene_of
from stofm.geometry import find_pairs

OF_EITHER = [
    "cell, padding",
    *(f"sub-slice, {what}" for what in ("batch", "exact bias", "order of cells", "padding", "reflection", "rotation")),
]
OF_OURS = [*OF_EITHER, "sub-slice, shift", "slice, order of rows", "slice, reflection", "slice, rotation", "slice, shift"]


@pytest.fixture(scope="module")
def tissue(tiny_run) -> Embedder:
    return load_embedder(tiny_run / "model", device="cpu")


@pytest.fixture(scope="module")
def published(tiny_corpus, tmp_path_factory) -> Embedder:
    folder = tmp_path_factory.mktemp("published")
    write_checkpoint(folder, tiny_corpus.vocab, random_weights())
    genes = GeneConfig(vocabulary=str(folder / "tokens.csv"), medians=str(folder / "medians.csv"))
    import_published(folder / "se2transformer.pth", folder / "config.json", folder / "cell_encoder", genes, folder / "model")
    return load_embedder(folder / "model", device="cpu")


@pytest.mark.parametrize(("scheme", "asked"), [("tissue", OF_OURS), ("published", OF_EITHER)])
def test_a_sound_model_passes(request, scheme, asked):
    changes = self_test(request.getfixturevalue(scheme))
    assert sorted(changes) == sorted(asked)
    assert max(changes.values()) <= MOST_CHANGE


def test_the_made_up_sub_slice_is_one_whose_distances_matter_to_either_scheme(tissue, published):
    one = made_up(0, 60)
    for embedder, sub_slice in ((tissue, one), (published, in_published_unit(one))):
        transformer = embedder.model.se2_transformer
        stretched = sub_slice.moved(lambda coords: coords * np.array([1.5, 1.0]))
        change = np.abs(represent_first(transformer, [sub_slice]) - represent_first(transformer, [stretched])).max()
        assert change > 10 * MOST_CHANGE


def test_a_model_that_reads_one_coordinate_fails(tissue, monkeypatch):
    def along_x(batch, *, n_neighbors):
        return find_pairs(replace(batch, coords_um=batch.coords_um * torch.tensor([1.0, 0.0])), n_neighbors=n_neighbors)

    monkeypatch.setattr("stofm.se2_transformer.find_pairs", along_x)
    changes = self_test(tissue)
    assert changes["sub-slice, rotation"] > MOST_CHANGE
    assert changes["slice, rotation"] > MOST_CHANGE
    assert changes["sub-slice, padding"] <= MOST_CHANGE


def test_distances_that_follow_the_axes_fail(published, monkeypatch):
    exact = module.published_distances
    monkeypatch.setattr(module, "published_distances", lambda places, virtual: exact(places * [1.0, 0.5], virtual * [1.0, 0.5]))
    changes = self_test(published)
    assert changes["sub-slice, rotation"] > MOST_CHANGE
    assert changes["sub-slice, order of cells"] <= MOST_CHANGE


def test_weights_that_are_no_numbers_fail(tissue):
    broken = copy.deepcopy(tissue.model.se2_transformer)
    broken.embedding_layer.bias.data[0] = float("nan")
    changes = self_test(replace(tissue, model=replace(tissue.model, se2_transformer=broken)))
    assert changes.pop("cell, padding") <= MOST_CHANGE
    assert not any(change <= MOST_CHANGE for change in changes.values())


def test_an_encoder_that_reads_padding_fails(tissue):
    broken = copy.deepcopy(tissue.model.cell_encoder)
    broken.at_cls = lambda tokens: broken.bert(input_ids=gene_of(tokens)).last_hidden_state[:, 0]
    changes = self_test(replace(tissue, model=replace(tissue.model, cell_encoder=broken)))
    assert [what for what, change in changes.items() if not change <= MOST_CHANGE] == ["cell, padding"]
