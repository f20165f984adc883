"""Tables of the pair bias: as exact as they say, gone with the weights they were made of, and never in the way of gradients."""

from __future__ import annotations

import pytest
import torch

from stofm.distance_bias import DistanceBias
from stofm.errors import ConfigError
from stofm.pair_bias import PairBias
from stofm.published_pair_bias import NO_DISTANCE, PublishedPairBias

H = 4
TOLERANCE = 1e-4


@pytest.fixture(params=["stofm", "published"])
def bias(request) -> DistanceBias:
    torch.manual_seed(0)
    return PairBias(H, 16, 20.0) if request.param == "stofm" else PublishedPairBias(H, 16)


@pytest.fixture
def distances(bias) -> torch.Tensor:
    return bias.farthest * torch.rand(5000, generator=torch.Generator().manual_seed(1)) ** 2


@torch.no_grad()
def test_a_table_is_as_exact_as_it_says(bias, distances):
    exact = bias.of_distance(distances)
    error = bias.tabulate(TOLERANCE)
    found = bias.of_distance(distances)
    assert error <= TOLERANCE
    assert 0 < (found - exact).abs().max() <= 2 * error + 1e-6  # measured between knots, where the true error may be a little larger


@torch.no_grad()
def test_ends_of_a_table_are_exact(bias):
    ends = torch.tensor([0.0, bias.farthest])
    exact = bias.of_distance(ends)
    bias.tabulate(TOLERANCE)
    torch.testing.assert_close(bias.of_distance(ends), exact)


def test_gradients_never_come_from_a_table(bias, distances):
    weights = list(bias.parameters())
    exact = torch.autograd.grad(bias.of_distance(distances).square().sum(), weights, allow_unused=True)
    bias.tabulate(TOLERANCE)
    for one, other in zip(torch.autograd.grad(bias.of_distance(distances).square().sum(), weights, allow_unused=True), exact, strict=True):
        assert one is other is None or torch.equal(one, other)


@torch.no_grad()
def test_a_table_is_gone_when_the_weights_change(bias, distances):
    bias.tabulate(TOLERANCE)
    for parameter in bias.parameters():
        parameter += 0.1
    torch.testing.assert_close(bias.of_distance(distances), bias.formula(distances))


@torch.no_grad()
def test_distances_beyond_the_table_are_computed(bias):
    beyond = torch.tensor([1.0, 2 * bias.farthest])
    exact = bias.of_distance(beyond)
    bias.tabulate(TOLERANCE)
    assert torch.equal(bias.of_distance(beyond), exact)


@torch.no_grad()
def test_without_gradients_chunks_change_nothing(bias, distances, monkeypatch):
    whole = bias.formula(distances)
    monkeypatch.setattr("stofm.distance_bias.CHUNK", 700)
    torch.testing.assert_close(bias.of_distance(distances), whole)
    assert bias.of_distance(distances[:0]).shape == (0, H)


def test_a_tolerance_out_of_reach_is_said(bias, monkeypatch):
    monkeypatch.setattr("stofm.distance_bias.MOST_KNOTS", 2**14)
    with pytest.raises(ConfigError, match=r"table of the pair bias: its error is .* expected at most 1\.0e-12"):
        bias.tabulate(1e-12)


@torch.no_grad()
def test_published_distance_zero_has_no_bias_and_its_neighborhood_has(bias):
    bias.tabulate(TOLERANCE)
    at_zero, near, far = bias.of_distance(torch.tensor([0.0, 1e-6, NO_DISTANCE]))
    assert (at_zero == 0).all() == isinstance(bias, PublishedPairBias)
    assert near.any()
    assert far.any()
