"""The token of a sub-slice (`has_cls`): off by default, seen by all and seeing all, without a place, the same in every form of the pair state."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from synth import pairs_of_tokens, random_record

from stofm.batch import collate
from stofm.distance_bias import TABLE_ERROR
from stofm.se2_transformer import SE2Transformer, SE2TransformerConfig

SIZES = {"n_layers": 2, "n_heads": 4, "ffn_dim": 32, "n_radial": 8, "n_neighbors": 6, "dropout": 0.0}


@pytest.fixture(params=["distances", "directional"])
def model(request) -> SE2Transformer:
    torch.manual_seed(0)
    model = SE2Transformer(SE2TransformerConfig(**SIZES, has_cls=True, geometry=request.param)).eval()
    torch.nn.init.normal_(model.pair_bias.with_cls)
    return model


@pytest.fixture
def batch():
    return collate([random_record(number, n_cells) for number, n_cells in enumerate((40, 1, 9))])


@torch.no_grad()
@pytest.mark.parametrize("form", ["tiles", "concatenated", "fused"])
def test_every_form_reads_it_alike(model, batch, form):
    outs = {}
    for model.form in ("in_place", form):
        outs[model.form] = model(batch, wanted=pairs_of_tokens(batch))
    for name in ("cell_repr", "pair_repr", "sub_slice_repr"):
        found, expected = getattr(outs[form], name), getattr(outs["in_place"], name)
        torch.testing.assert_close(found, expected, atol=2 * TABLE_ERROR if form == "fused" else 1e-5, rtol=0)


@torch.no_grad()
def test_padding_turning_and_order_change_nothing(model, batch):
    whole = model(batch)
    alone = model(collate([random_record(1, 1)]))
    torch.testing.assert_close(whole.sub_slice_repr[1], alone.sub_slice_repr[0], atol=1e-5, rtol=0)
    turn = torch.tensor([[0.6, 0.8], [0.8, -0.6]])  # a turn and a reflection
    moved = model(replace(batch, coords_um=batch.coords_um @ turn + 500))
    torch.testing.assert_close(moved.sub_slice_repr, whole.sub_slice_repr, atol=1e-4, rtol=0)
    other = torch.cat([torch.randperm(40), torch.arange(40, batch.is_cell.shape[1])])
    first = collate([random_record(0, 40)])
    shuffled = model(replace(first, **{name: getattr(first, name)[:, other[: first.is_cell.shape[1]]] for name in ("cell_embeddings", "coords_um")}))
    torch.testing.assert_close(shuffled.sub_slice_repr[0], model(first).sub_slice_repr[0], atol=1e-5, rtol=0)


def test_it_sees_every_cell_and_every_cell_sees_it(model, batch):
    embeddings = batch.cell_embeddings.clone().requires_grad_()
    out = model(replace(batch, cell_embeddings=embeddings))
    (of_cells,) = torch.autograd.grad(out.sub_slice_repr[0].square().sum(), embeddings, retain_graph=True)
    is_there = ~batch.is_padding
    assert of_cells[0][is_there[0]].abs().sum(-1).min() > 0
    assert of_cells[1:].abs().max() == 0
    for cell in (0, 20, 39):
        (of_cls,) = torch.autograd.grad(out.cell_repr[0, cell].square().sum(), model.cls_embedding, retain_graph=True)
        assert of_cls.abs().max() > 0


def test_without_it_a_model_has_no_weight_of_it_and_no_representation(batch):
    model = SE2Transformer(SE2TransformerConfig(**SIZES)).eval()
    assert not [name for name in model.state_dict() if "cls" in name]
    assert model(batch).sub_slice_repr is None


def test_published_sub_slices_have_one_anyway():
    with pytest.raises(ValueError, match="published with has_cls"):
        SE2TransformerConfig(scheme="published", has_cls=True)
