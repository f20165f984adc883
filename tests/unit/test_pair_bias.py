"""Pair bias: a function of distance where there is a pair, learned constants elsewhere, nothing for padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from synth import random_record

from stofm.batch import collate
from stofm.fields import COORDS_UM
from stofm.geometry import find_pairs
from stofm.pair_bias import FARTHEST_UM, PairBias

H = 4


@pytest.fixture
def pair_bias() -> PairBias:
    torch.manual_seed(0)
    module = PairBias(n_heads=H, n_radial=16, length_um=20.0)
    torch.nn.init.normal_(module.itself)
    torch.nn.init.normal_(module.with_virtual)
    return module.requires_grad_(False)


@pytest.fixture
def batch():
    return collate([random_record(0, 30), random_record(1, 12)])


def test_every_entry_is_what_its_kind_says(pair_bias, batch):
    pairs = find_pairs(batch, n_neighbors=5)
    bias = pair_bias(batch, pairs).dense()
    B, N = batch.is_padding.shape
    expected = pair_bias.apart[None, :, None, None].expand(B, H, N, N).clone()
    values = pair_bias.of_distance(pairs.distance_um)
    is_virtual = batch.is_virtual
    for number, (b, i, j) in enumerate(zip(pairs.batch.tolist(), pairs.first.tolist(), pairs.second.tolist(), strict=True)):
        value = values[number] + (pair_bias.with_virtual if is_virtual[b, i] or is_virtual[b, j] else 0.0)
        expected[b, :, i, j] = expected[b, :, j, i] = value
    expected[:, :, torch.arange(N), torch.arange(N)] = pair_bias.itself[:, None].expand(H, N)
    torch.testing.assert_close(bias, expected.masked_fill(batch.is_padding[:, None, None, :], -torch.inf))


def test_the_bias_of_two_cells_is_the_same_both_ways(pair_bias, batch):
    bias = pair_bias(batch, find_pairs(batch, n_neighbors=5)).dense()
    n = int((~batch.is_padding[1]).sum())
    torch.testing.assert_close(bias[1, :, :n, :n], bias[1, :, :n, :n].mT, rtol=0, atol=0)


def test_columns_of_padding_and_nothing_else_are_minus_infinity(pair_bias, batch):
    bias = pair_bias(batch, find_pairs(batch, n_neighbors=5)).dense()
    assert torch.equal(bias == -torch.inf, batch.is_padding[:, None, None, :].expand_as(bias))


def test_distance_zero_is_a_distance_and_not_the_cell_itself(pair_bias):
    record = random_record(0, 5, n_virtual=0)
    batch = collate([{**record, COORDS_UM: np.zeros((5, 2), np.float32)}])
    bias = pair_bias(batch, find_pairs(batch, n_neighbors=2)).dense()
    torch.testing.assert_close(bias[0, :, 0, 1], pair_bias.of_distance(torch.zeros(1))[0])
    torch.testing.assert_close(bias[0, :, 0, 0], pair_bias.itself)
    assert (bias[0, :, 0, 1] - bias[0, :, 0, 0]).abs().min() > 1e-3


@pytest.mark.parametrize(("near", "far"), [(10.0, 11.0), (100.0, 120.0), (5000.0, 8000.0)])
def test_distances_are_told_apart_from_neighbors_to_ends_of_a_tissue(pair_bias, near, far):
    values = pair_bias.of_distance(torch.tensor([near, far]))
    assert (values[0] - values[1]).abs().max() > 1e-3


def test_distances_beyond_the_farthest_look_alike(pair_bias):
    values = pair_bias.of_distance(torch.tensor([FARTHEST_UM, 2 * FARTHEST_UM, 1e7]))
    torch.testing.assert_close(values, values[:1].expand(3, H), rtol=0, atol=1e-5)


def test_every_constant_and_the_function_of_distance_are_learned(batch):
    module = PairBias(n_heads=H, n_radial=16, length_um=20.0)
    module(batch, find_pairs(batch, n_neighbors=5)).dense().masked_fill(batch.is_padding[:, None, None, :], 0).square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert module.apart.grad.abs().max() > 0
