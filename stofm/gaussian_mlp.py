"""K Gaussians of a number and a two-layer network behind them, for many numbers, in the memory of a few and with gradients.

Numbers go through in chunks that stay in a processor's cache; the gradient computes a chunk again instead of keeping it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

CHUNK, CHUNK_ON_GPU = 512, 2**18  # numbers; 128 Gaussians of 512 are a quarter of a megabyte, while GPUs want few and large steps
LEAST_EXPONENT = -75.0  # a Gaussian below e^-75 is taken for 0: such numbers and their products are denormal, and slow on CPUs


def gaussian_mlp(x: Tensor, mean: Tensor, std: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Return ``relu(g(x) W1^T + b1) W2^T + b2`` with ``g`` the densities of K normal distributions.

    Parameters
    ----------
    x : (E,) float
    mean, std : (K,) float
        `std` positive.
    w1, b1, w2, b2 : (K, K), (K,), (H, K), (H,) float

    Returns
    -------
    (E, H) float
        Equal to the plain formula, but that densities below e^-75 of a peak are 0.
    """
    density = 1 / (std * math.sqrt(2 * math.pi))  # at the peak; taken into the first layer
    return _GaussianMLP.apply(x, mean, 1 / std, w1 * density, b1, w2, b2)


class _GaussianMLP(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, inverse: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        ctx.save_for_backward(x, mean, inverse, w1, b1, w2)
        out = x.new_empty(len(x), len(w2))
        for rows, _, _, hidden in _chunks(x, mean, inverse, w1, b1):
            torch.addmm(b2, hidden, w2.T, out=out[rows])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, mean, inverse, w1, b1, w2 = ctx.saved_tensors
        of_x = torch.empty_like(x)
        of_mean, of_inverse, of_w1, of_b1, of_w2 = (torch.zeros_like(one) for one in (mean, inverse, w1, b1, w2))
        room, ones = x.new_empty(2, _chunk(x), len(mean)), x.new_ones(1, _chunk(x))
        for rows, z, gaussians, hidden in _chunks(x, mean, inverse, w1, b1):
            one, n = grad[rows], len(z)
            of_hidden, of_z, sums = room[0, :n], room[1, :n], ones[:, :n]
            of_w2.addmm_(one.T, hidden)
            torch.mm(one, w2, out=of_hidden)
            torch.ops.aten.threshold_backward.grad_input(of_hidden, hidden, 0, grad_input=of_hidden)
            of_w1.addmm_(of_hidden.T, gaussians)
            of_b1.add_((sums @ of_hidden)[0])
            torch.mm(of_hidden, w1, out=of_z).mul_(gaussians).mul_(z).neg_()  # of exp(-z^2 / 2)
            torch.mv(of_z, inverse, out=of_x[rows])
            of_mean.sub_((sums @ of_z)[0])
            of_inverse.add_((sums @ of_z.mul_(z))[0])
        of_mean, of_inverse = of_mean * inverse, of_inverse / inverse  # z = (x - mean) * inverse
        return of_x, of_mean, of_inverse, of_w1, of_b1, of_w2, grad.sum(0)


def _chunk(x: Tensor) -> int:
    return min(CHUNK if x.device.type == "cpu" else CHUNK_ON_GPU, len(x))


def _chunks(x: Tensor, mean: Tensor, inverse: Tensor, w1: Tensor, b1: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Rows, ``z``, ``exp(-z^2 / 2)`` and hidden layer of every chunk, each (chunk, K) and overwritten by the next."""
    chunk = _chunk(x)
    room = x.new_empty(3, chunk, len(mean))
    w1_t, zero = w1.T.contiguous(), x.new_zeros(())
    for start in range(0, len(x), chunk or 1):
        rows = slice(start, min(start + chunk, len(x)))
        z, gaussians, hidden = room[:, : rows.stop - start]
        torch.sub(x[rows, None], mean, out=z).mul_(inverse)
        torch.addcmul(zero, z, z, value=-0.5, out=gaussians).clamp_(min=LEAST_EXPONENT).exp_()
        torch.threshold_(gaussians, math.exp(LEAST_EXPONENT) * (1 + 1e-5), 0.0)
        torch.addmm(b1, gaussians, w1_t, out=hidden).relu_()
        yield rows, z, gaussians, hidden
