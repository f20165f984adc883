"""Attention by the pair state: scores add up from layer to layer, in every form of the state, forwards and backwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from synth import random_record
from torch import Tensor

from stofm.attention import PairStateAttention
from stofm.batch import collate
from stofm.geometry import find_pairs
from stofm.pair_state import pair_state
from stofm.sparse_bias import SparseBias

H, D, N_LAYERS = 4, 32, 3
FORMS, WITH_GRADIENTS = ("tiles", "concatenated", "in_place"), ("concatenated", "in_place")
SIZES = (13, 2, 8)  # cells of the sub-slices; each has three virtual cells


@pytest.fixture
def layers() -> torch.nn.ModuleList:
    torch.manual_seed(0)
    modules = torch.nn.ModuleList(PairStateAttention(D, H, dropout=0.5) for _ in range(N_LAYERS)).double()
    for parameter in modules.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return modules.eval()


@pytest.fixture
def bias() -> SparseBias:
    torch.manual_seed(1)
    batch = collate([random_record(number, n_cells) for number, n_cells in enumerate(SIZES)])
    pairs = find_pairs(batch, n_neighbors=4)
    values = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((len(pairs.first), H), (H,), (H,)))
    return SparseBias(pairs, *values, batch.is_padding)


@pytest.fixture
def cells(bias) -> Tensor:
    return torch.randn(bias.bounds[-1], D, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)


def plain(layers, bias: SparseBias, cells: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Layer after layer as the paper writes it: cells after the last one, and the pair state of the wanted pairs."""
    is_there = ~bias.is_padding
    state, x = bias.dense(), cells.new_zeros(*is_there.shape, D).masked_scatter(is_there[..., None], cells)
    for module in layers:
        q, k, v = (project(x).unflatten(-1, (H, -1)) for project in (module.q_proj, module.k_proj, module.v_proj))
        state = state + torch.einsum("bihd,bjhd->bhij", q, k) / (D / H) ** 0.5
        x = x + module.out_proj(torch.einsum("bhij,bjhd->bihd", state.softmax(-1), v).flatten(2))
    b, i, j = wanted.T
    return x[is_there], state[b, :, i, j]


def ours(layers, bias: SparseBias, cells: Tensor, wanted: Tensor, form) -> tuple[Tensor, Tensor]:
    state = pair_state(bias, form)
    for module in layers:
        cells = cells + module(cells, state)
    return cells, state.of_pairs(wanted)


def wanted_of(bias: SparseBias) -> Tensor:
    """Every ordered pair of tokens, in no order."""
    is_there = ~bias.is_padding
    pairs = (is_there[:, :, None] & is_there[:, None, :]).nonzero()
    return pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))]


@torch.no_grad()
@pytest.mark.parametrize("block", [2**18, 60, 7])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_plain_formula(layers, bias, cells, form, block, monkeypatch):
    monkeypatch.setattr("stofm.pair_state.BLOCK", block)
    monkeypatch.setattr("stofm.pair_state.LEAST_ROWS", min(block, 64))
    wanted = wanted_of(bias)
    for found, expected in zip(ours(layers, bias, cells, wanted, form), plain(layers, bias, cells, wanted), strict=True):
        torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_what_is_no_pair_may_be_hidden_from_a_tile_as_a_whole(layers, bias, cells, monkeypatch):
    monkeypatch.setattr("stofm.pair_state.BLOCK", 4)
    monkeypatch.setattr("stofm.pair_state.LEAST_ROWS", 2)
    bias = replace(bias, apart=torch.full_like(bias.apart, -torch.inf))
    found, expected = (ours(layers, bias, cells, wanted_of(bias), form)[0] for form in ("tiles", "in_place"))
    assert expected.isfinite().all()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("asked", ["cells", "pairs", "both"])
@pytest.mark.parametrize("form", WITH_GRADIENTS)
def test_every_gradient_is_that_of_the_plain_formula(layers, bias, cells, form, asked):
    wanted = wanted_of(bias)[:40]
    wanted = torch.cat([wanted, wanted[:5]])  # some are asked for twice
    learned = [bias.of_pair, bias.apart, bias.itself, cells, *layers.parameters()]

    def gradients(of_cells, of_pairs):
        score = {"cells": of_cells.sin().sum(), "pairs": of_pairs.sin().sum(), "both": of_cells.sin().sum() + of_pairs.sin().sum()}[asked]
        return torch.autograd.grad(score, learned, allow_unused=True, materialize_grads=True)

    expected = gradients(*plain(layers, bias, cells, wanted))
    for found, one in zip(gradients(*ours(layers, bias, cells, wanted, form)), expected, strict=True):
        torch.testing.assert_close(found, one)


@pytest.mark.parametrize("form", WITH_GRADIENTS)
def test_dropout_acts_in_training_and_its_gradient_is_exact(layers, bias, cells, form):
    wanted = wanted_of(bias)
    steady = ours(layers, bias, cells, wanted, form)[0]
    layers.train()

    def dropped(cells):
        torch.manual_seed(3)
        return ours(layers, bias, cells, wanted, form)[0]

    assert (dropped(cells) != steady).any()
    torch.autograd.gradcheck(dropped, (cells,), fast_mode=True)


@torch.no_grad()
def test_dropout_acts_in_every_form_that_is_training(layers, bias, cells):
    steady = ours(layers, bias, cells, wanted_of(bias), "tiles")[0]
    layers.train()
    assert (ours(layers, bias, cells, wanted_of(bias), "tiles")[0] != steady).any()


def test_tiles_refuse_to_forget_gradients(layers, bias, cells):
    with pytest.raises(RuntimeError, match="keeps nothing for gradients"):
        ours(layers, bias, cells, wanted_of(bias), "tiles")


def test_the_form_follows_the_wish_for_gradients(bias):
    assert type(pair_state(bias)).__name__ == "InPlace"
    with torch.no_grad():
        assert type(pair_state(bias)).__name__ == "Tiles"
