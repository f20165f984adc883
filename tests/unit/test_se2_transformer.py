"""The transformer as a whole: both schemes, inputs at the edge of what is allowed, and lower precision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from synth import pairs_of_tokens, random_record

from stofm.batch import SubSliceBatch, collate
from stofm.config import parse_config
from stofm.errors import ConfigError, DataError
from stofm.fields import COORDS_UM, VIRTUAL_COORDS_UM
from stofm.geometry import find_pairs
from stofm.se2_transformer import SE2Transformer, SE2TransformerConfig

FORMS = ("tiles", "concatenated", "in_place")
SIZES = {"n_layers": 2, "n_heads": 4, "ffn_dim": 32, "n_radial": 8, "n_neighbors": 6, "dropout": 0.0}


@pytest.fixture(params=["stofm", "published"])
def model(request) -> SE2Transformer:
    torch.manual_seed(0)
    return SE2Transformer(SE2TransformerConfig(scheme=request.param, **SIZES)).eval()


def read(model: SE2Transformer, batch: SubSliceBatch, form: str | None = None):
    model.form = form
    with torch.no_grad():
        return model(batch, find_pairs(batch, n_neighbors=6), wanted=pairs_of_tokens(batch))


def in_one_point(record):
    return {**record, **{name: np.zeros_like(record[name]) for name in (COORDS_UM, VIRTUAL_COORDS_UM)}}


def with_an_empty_one() -> SubSliceBatch:
    """A sub-slice, and one of padding alone."""
    batch = collate([random_record(0), random_record(1)])
    is_first = torch.tensor([[True], [False]])
    return replace(batch, is_padding=batch.is_padding | ~is_first, is_virtual=batch.is_virtual & is_first)


EDGES = {
    "one cell": [random_record(0, 1, n_virtual=0)],
    "one cell and its virtual cells": [random_record(0, 1, n_virtual=2)],
    "all cells in one point": [in_one_point(random_record(0, 20))],
    "one cell beside many": [random_record(0, 1, n_virtual=0), random_record(1, 30)],
}


@pytest.mark.parametrize("records", EDGES.values(), ids=EDGES.keys())
def test_edges_have_a_defined_result_that_is_the_same_in_every_form(model, records):
    batch = collate(records)
    first, *others = [read(model, batch, form) for form in FORMS]
    assert first.cell_repr.isfinite().all()
    assert first.pair_repr.isfinite().all()
    for other in others:
        torch.testing.assert_close(other.cell_repr, first.cell_repr, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(other.pair_repr, first.pair_repr, atol=1e-5, rtol=1e-5)


def test_cells_in_one_point_with_equal_embeddings_are_represented_alike(model):
    record = in_one_point(random_record(0, 5, n_virtual=0))
    batch = collate([record])
    out = read(model, replace(batch, cell_embeddings=batch.cell_embeddings[:, :1].expand_as(batch.cell_embeddings)))
    torch.testing.assert_close(out.cell_repr, out.cell_repr[:, :1].expand_as(out.cell_repr), atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_a_sub_slice_of_padding_alone_changes_nothing(model, form):
    emptied = with_an_empty_one()
    out = read(model, emptied, form).cell_repr
    torch.testing.assert_close(out[0], read(model, collate([random_record(0)]), form).cell_repr[0], atol=1e-5, rtol=1e-5)
    assert not out[1].any()


@pytest.mark.parametrize("form", ["concatenated", "in_place"])
def test_gradients_with_a_sub_slice_of_padding_alone_are_numbers(model, form):
    model.form = form
    emptied = with_an_empty_one()
    model(emptied, find_pairs(emptied, n_neighbors=6)).cell_repr.sin().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("form", FORMS)
def test_lower_precision_comes_close_and_leaves_the_bias_alone(model, form):
    batch = collate([random_record(0), random_record(1, 25)])
    biases = []
    model.pair_bias.register_forward_hook(lambda module, args, bias: biases.append(bias.of_pair))
    exact = read(model, batch, form)
    with torch.autocast("cpu", torch.bfloat16):
        near = read(model, batch, form)
    assert torch.equal(*biases)
    assert biases[0].dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(near.cell_repr.float(), exact.cell_repr, dim=-1)[~batch.is_padding]
    assert cosine.min() > 0.999
    assert (near.cell_repr.float() - exact.cell_repr).abs().max() > 1e-6


def test_the_published_scheme_asks_for_its_pairs():
    model = SE2Transformer(SE2TransformerConfig(scheme="published", **SIZES))
    with pytest.raises(DataError, match="found no pairs; expected those of the published distances"):
        model(collate([random_record(0)]))


def test_a_configuration_from_before_there_were_schemes_is_ours():
    assert parse_config(SE2TransformerConfig, SIZES, where="model").scheme == "stofm"
    assert "mask_embedding" in SE2Transformer(SE2TransformerConfig(**SIZES)).state_dict()


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ConfigError, match=r"model: scheme: Input should be 'stofm' or 'published'; found 'squares'"):
        parse_config(SE2TransformerConfig, {"scheme": "squares"}, where="model")


@pytest.mark.parametrize("most_by_matrix", [2048, 1])
def test_more_neighbors_than_there_are_cells_make_pairs_of_all(most_by_matrix, monkeypatch):
    monkeypatch.setattr("stofm.geometry.MOST_BY_MATRIX", most_by_matrix)
    batch = collate([random_record(0, 20), random_record(1, 5), random_record(2, 1, n_virtual=0)])
    dense = SE2Transformer(SE2TransformerConfig(**{**SIZES, "n_neighbors": 10**6}))
    n_tokens = (~batch.is_padding).sum(dim=1)
    assert len(dense.find_pairs(batch).first) == (n_tokens * (n_tokens - 1) // 2).sum()
