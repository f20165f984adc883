"""Gaussians and the network behind them, chunk by chunk: the plain formula and its gradients, without denormal numbers."""

from __future__ import annotations

import math

import pytest
import torch

from stofm import gaussian_mlp as module
from stofm.gaussian_mlp import gaussian_mlp

K, H = 12, 3


def plain(x, mean, std, w1, b1, w2, b2):
    gaussians = torch.exp(-0.5 * ((x[:, None] - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
    return torch.relu(gaussians @ w1.T + b1) @ w2.T + b2


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    x = (torch.rand(50, generator=generator, dtype=torch.float64) * 10).requires_grad_()
    std = (torch.rand(K, generator=generator, dtype=torch.float64) + 0.05).requires_grad_()
    return x, draw(K), std, draw(K, K), draw(K), draw(H, K), draw(H)


@pytest.mark.parametrize("chunk", [1, 7, 50, 512])
def test_values_and_gradients_are_those_of_the_plain_formula(inputs, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    found, expected = gaussian_mlp(*inputs), plain(*inputs)
    torch.testing.assert_close(found, expected)
    weights = torch.linspace(-1, 1, 50 * H, dtype=torch.float64).view(50, H)
    for one, other in zip(*(torch.autograd.grad((out * weights).sum(), inputs) for out in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_no_numbers_are_no_trouble(inputs):
    _, *others = inputs
    assert gaussian_mlp(torch.zeros(0, dtype=torch.float64), *others).shape == (0, H)


def test_tails_are_zero_and_never_denormal():
    x = torch.linspace(0, 20, 2001)
    one = torch.ones(1)
    room = [gaussians.clone() for _, _, gaussians, _ in module._chunks(x, torch.zeros(1), one, torch.ones(1, 1), one * 0)]
    values = torch.cat(room)
    assert (values == 0).sum() > 100
    assert values[values > 0].min() > 1e-33
