"""The pair state in four forms that compute the same: what distances add to attention, plus the scores of all layers so far.

Forms differ in what they keep of ``S_l = S_{l-1} + q_l k_l^T``, where ``S_0`` is the pair bias and a layer attends by ``softmax(S_l) v_l``
(SToFM, after Uni-Mol):

- `RowBlocks` uses ``S_l = S_0 + [q_1 .. q_l] [k_1 .. k_l]^T`` and makes a few rows of it at a time: nothing is ever N x N. Inference on CPUs.
- `Concatenated` hands the same sum to scaled-dot-product attention, with a dense ``S_0``. GPUs.
- `InPlace` (`stofm.in_place`) adds every layer to one array: the least arithmetic. Training on CPUs.
- `Fused` (`stofm.fused`) starts from coordinates instead of pairs, and looks ``S_0`` up inside the attention kernel.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from stofm.in_place import BLOCK, InPlace
from stofm.sparse_bias import SparseBias

Form = Literal["rows", "concatenated", "in_place", "fused"]
LEAST_ROWS = 128  # of a block; products of fewer rows are slow


class PairState(Protocol):
    """What attention asks of every form. Tokens of all sub-slices follow one another, T in all, without padding."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, dropout: float) -> Tensor:
        """Add the scores of a layer and attend; q (scaled), k, v and the result are (T, H, D/H)."""

    def of_pairs(self, wanted: Tensor) -> Tensor:
        """Return the state of (P, 3) pairs, sub-slice and two cells, as (P, H)."""


def pair_state(bias: SparseBias, form: Form | None = None) -> PairState:
    """Start from the pair bias, by default in the form that suits the device and the wish for gradients."""
    if form is None:  # `fused` is to be asked for until it was tried on a GPU
        form = "concatenated" if bias.apart.is_cuda else "in_place" if torch.is_grad_enabled() else "rows"
    forms: dict[Form, type[PairState]] = {"rows": RowBlocks, "concatenated": Concatenated, "in_place": InPlace}
    return forms[form](bias)  # type: ignore[call-arg]


class _AllLayers:
    """Queries and keys of all layers so far, side by side: (H, T, l * D/H) after l layers."""

    bias: SparseBias
    q: Tensor | None = None
    k: Tensor | None = None

    def add(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        q, k = q.transpose(0, 1), k.transpose(0, 1)
        self.q = q.contiguous() if self.q is None else torch.cat([self.q, q], dim=-1)
        self.k = k.contiguous() if self.k is None else torch.cat([self.k, k], dim=-1)
        return self.q, self.k

    def scores(self, first: Tensor, second: Tensor) -> Tensor | float:
        """Sum of the scores of all layers of pairs of tokens, (P, H)."""
        if self.q is None or self.k is None:
            return 0.0
        dtype = self.bias.apart.dtype
        return (self.q[:, first].to(dtype) * self.k[:, second].to(dtype)).sum(-1).T


class RowBlocks(_AllLayers):
    """A few rows at a time; keeps nothing for gradients."""

    def __init__(self, bias: SparseBias) -> None:
        self.bias = bias
        row, column = bias.entries()
        self.n_columns = bias.is_padding.shape[1]
        self.key, order = (row * self.n_columns + column).sort()
        self.row, self.column = row[order], column[order]
        self.value = bias.values().T.contiguous().index_select(1, order)  # (H, M); in this order of steps, for columns are slow to gather
        self.starts = torch.searchsorted(self.key, torch.arange(bias.bounds[-1] + 1, device=row.device) * self.n_columns).tolist()  # of every row

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, dropout: float) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("the pair state in row blocks keeps nothing for gradients; choose another form, or torch.no_grad()")
        dtype = self.value.dtype
        q, k = self.add(q.to(dtype), k.to(dtype))
        values = v.to(dtype).transpose(0, 1).contiguous()  # (H, T, D/H)
        mixed = torch.empty_like(values)
        constants = self.bias.apart.tolist()
        for start, stop in zip(self.bias.bounds, self.bias.bounds[1:], strict=False):
            n = stop - start
            n_rows = min(n, max(LEAST_ROWS, BLOCK // max(n, 1)))
            n_heads = max(1, BLOCK // max(n_rows * n, 1)) if n_rows == n else 1
            room = values.new_empty(n_heads * n_rows * n)
            for first in range(start, stop, n_rows or 1):
                rows = slice(first, min(first + n_rows, stop))
                place, entries = self._entries(rows, n)
                for head in range(0, len(values), n_heads):
                    heads = slice(head, head + n_heads)
                    scores = room[: len(constants[heads]) * n * (rows.stop - first)].view(len(constants[heads]), -1)
                    for one, apart, of_place in zip(scores, constants[heads], self.value[heads, entries], strict=True):
                        one.fill_(apart).scatter_(0, place, of_place)  # one head at a time: several times as fast as all together
                    scores = scores.view(len(scores), -1, n).baddbmm_(q[heads, rows], k[heads, start:stop].mT)
                    weights = torch.softmax(scores, -1, out=scores)
                    weights = F.dropout(weights, dropout, inplace=True) if dropout else weights
                    torch.bmm(weights, values[heads, start:stop], out=mixed[heads, rows])
        return mixed.transpose(0, 1).to(v.dtype)

    def _entries(self, rows: slice, n: int) -> tuple[Tensor, slice]:
        """Place of the entries of some rows in a block of width n, and which they are."""
        entries = slice(self.starts[rows.start], self.starts[rows.stop])
        return (self.row[entries] - rows.start) * n + self.column[entries], entries

    def of_pairs(self, wanted: Tensor) -> Tensor:
        row, column = self.bias.tokens_of(*wanted.unbind(1))
        key = row * self.n_columns + column
        at = torch.searchsorted(self.key, key).clamp(max=len(self.key) - 1)
        bias = torch.where((self.key[at] == key)[:, None], self.value[:, at].T, self.bias.apart)
        return bias + self.scores(row, self.bias.token[wanted[:, 0], wanted[:, 2]])


class Concatenated(_AllLayers):
    """Plain scaled-dot-product attention with a dense bias and ever wider heads."""

    def __init__(self, bias: SparseBias) -> None:
        self.bias, self.dense = bias, bias.dense()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, dropout: float) -> Tensor:
        is_there = ~self.bias.is_padding

        def padded(x: Tensor) -> Tensor:
            return x.new_zeros(*is_there.shape, *x.shape[1:]).masked_scatter(is_there[..., None, None], x).transpose(1, 2)

        q, k = (x.transpose(0, 1) for x in self.add(q, k))
        bias = self.dense.to(q.dtype)  # what fused kernels ask for; their softmax is in float32 whatever this is
        mixed = F.scaled_dot_product_attention(padded(q), padded(k), padded(v), attn_mask=bias, dropout_p=dropout, scale=1.0)
        return mixed.transpose(1, 2)[is_there]

    def of_pairs(self, wanted: Tensor) -> Tensor:
        b, i, j = wanted.unbind(1)
        return self.dense[b, :, i, j] + self.scores(self.bias.token[b, i], self.bias.token[b, j])
