"""The pair state as one array per sub-slice, to which every layer adds its scores in place, with gradients.

Nothing is allocated per layer but the attention weights, which the gradient needs. On the way back one array per sub-slice holds
the gradient of the pair state, to which every layer adds as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from stofm.sparse_bias import SparseBias

BLOCK = 2**18  # scores worked on at a time: a megabyte, which stays in a processor's cache


class InPlace:
    """Pair state (H, n, n) of every sub-slice."""

    def __init__(self, bias: SparseBias) -> None:
        self.bias = bias
        row, column = bias.entries()
        bounds = torch.tensor(bias.bounds, device=row.device)
        b = torch.searchsorted(bounds, row, right=True) - 1
        self.sizes = bounds.diff().tolist()
        place = (row - bounds[b]) * bounds.diff()[b] + column
        order = torch.argsort(b, stable=True)
        parts = torch.bincount(b, minlength=len(self.sizes)).tolist()
        places = place[order].split(parts)
        values = bias.values()[order].split(parts)
        self.states = [_Fill.apply(bias.apart, *one, n) for *one, n in zip(values, places, self.sizes, strict=True)]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, dropout: float) -> Tensor:
        mixed = []
        for number, of_one in enumerate(zip(*(x.to(self.bias.apart.dtype).transpose(0, 1).split(self.sizes, dim=1) for x in (q, k, v)), strict=True)):
            self.states[number], one = _Attend.apply(self.states[number], *of_one, dropout)
            mixed.append(one)
        return torch.cat(mixed, dim=1).transpose(0, 1).to(v.dtype)

    def of_pairs(self, wanted: Tensor) -> Tensor:
        row, column = self.bias.tokens_of(*wanted.unbind(1))
        order = torch.argsort(wanted[:, 0], stable=True)
        bounds = torch.tensor(self.bias.bounds, device=row.device)
        n_each = torch.bincount(wanted[:, 0], minlength=len(self.sizes)).tolist()
        row, column = row[order] - bounds[wanted[order, 0]], column[order]
        read = [_Read.apply(s, i, j) for s, i, j in zip(self.states, row.split(n_each), column.split(n_each), strict=True)]
        return torch.cat(read)[torch.argsort(order)]


def blocks_of_heads(state: Tensor) -> list[slice]:
    """Heads of an (H, n, n) array, as many at a time as a block holds."""
    n_heads = max(1, BLOCK // max(1, state[0].numel()))
    return [slice(h, h + n_heads) for h in range(0, len(state), n_heads)]


class _Fill(Function):
    """(H, n, n) from the constant of all entries (H,), and the values (M, H) of some places (M,), each of which is named once."""

    @staticmethod
    def forward(ctx: Any, apart: Tensor, value: Tensor, place: Tensor, n: int) -> Tensor:
        ctx.save_for_backward(place)
        state = apart.new_empty(len(apart), n, n)
        for one, constant, of_place in zip(state.flatten(1), apart, value.T.contiguous(), strict=True):
            one.fill_(constant).scatter_(0, place, of_place)
        return state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (place,) = ctx.saved_tensors
        grad = grad.flatten(1)
        of_place = grad.index_select(1, place)  # (H, M)
        return grad.sum(1) - of_place.sum(1), of_place.T, None, None


class _Attend(Function):
    """Add ``q k^T`` to the state in place, and return it with ``softmax(state) v``."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
        weights = torch.empty_like(state)
        is_kept = torch.empty_like(state, dtype=torch.bool) if dropout else None
        mixed = torch.empty_like(v)
        for h in blocks_of_heads(state):
            torch.softmax(state[h].baddbmm_(q[h], k[h].mT), -1, out=weights[h])
            seen = weights[h] if is_kept is None else weights[h] * is_kept[h].bernoulli_(1 - dropout)
            torch.bmm(seen, v[h], out=mixed[h])
        ctx.mark_dirty(state)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, weights, is_kept)
        ctx.scale = 1 / (1 - dropout)
        return state, mixed.mul_(ctx.scale) if dropout else mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_state: Tensor | None, of_mixed: Tensor | None) -> tuple[Tensor | None, ...]:
        """`of_state` comes from the next layer's `_Attend` or from `_Read`, which make it and use it no more, so it is added to in place."""
        q, k, v, weights, is_kept = ctx.saved_tensors
        of_state = torch.zeros_like(weights) if of_state is None else of_state
        of_q, of_k, of_v = (torch.empty_like(x) for x in (q, k, v))
        of_mixed = torch.zeros_like(v) if of_mixed is None else of_mixed * ctx.scale
        for h in blocks_of_heads(weights):
            seen = weights[h] if is_kept is None else weights[h] * is_kept[h]
            torch.bmm(seen.mT, of_mixed[h], out=of_v[h])
            of_seen = of_mixed[h] @ v[h].mT
            of_weights = of_seen if is_kept is None else of_seen.mul_(is_kept[h])
            of_state[h] += torch._softmax_backward_data(of_weights, weights[h], -1, weights.dtype)
            torch.bmm(of_state[h], k[h], out=of_q[h])
            torch.bmm(of_state[h].mT, q[h], out=of_k[h])
        return of_state, of_q, of_k, of_v, None


class _Read(Function):
    """Entries (P, H) of a state."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, i: Tensor, j: Tensor) -> Tensor:
        ctx.shape, ctx.place = state.shape, i * state.shape[2] + j
        return state.flatten(1).index_select(1, ctx.place).T.contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad.new_zeros(ctx.shape).flatten(1).index_add_(1, ctx.place, grad.T).view(ctx.shape), None, None
