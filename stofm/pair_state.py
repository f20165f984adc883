"""The pair state in four forms that compute the same: what distances add to attention, plus the scores of all layers so far.

Forms differ in what they keep of ``S_l = S_{l-1} + q_l k_l^T``, where ``S_0`` is the pair bias and a layer attends by ``softmax(S_l) v_l``
(SToFM, after Uni-Mol):

- `Tiles` uses ``S_l = S_0 + [q_1 .. q_l] [k_1 .. k_l]^T`` and makes some rows and columns of it at a time: nothing is ever N x N. Inference on CPUs.
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

Form = Literal["tiles", "concatenated", "in_place", "fused"]
LEAST_ROWS = 128  # of a tile; products of fewer rows are slow


class PairState(Protocol):
    """What attention asks of every form. Tokens of all sub-slices follow one another, T in all, without padding."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, dropout: float) -> Tensor:
        """Add the scores of a layer and attend; q (scaled), k, v and the result are (T, H, D/H)."""

    def of_pairs(self, wanted: Tensor) -> Tensor:
        """Return the state of (P, 3) pairs, sub-slice and two cells, as (P, H)."""


def pair_state(bias: SparseBias, form: Form | None = None) -> PairState:
    """Start from the pair bias, by default in the form that suits the device and the wish for gradients."""
    if form is None:
        form = "concatenated" if bias.apart.is_cuda else "in_place" if torch.is_grad_enabled() else "tiles"
    forms: dict[Form, type[PairState]] = {"tiles": Tiles, "concatenated": Concatenated, "in_place": InPlace}
    return forms[form](bias)  # type: ignore[call-arg]


def _beside(before: Tensor | None, x: Tensor) -> Tensor:
    """Queries or keys of one more layer, beside those of the layers before it."""
    return x if before is None else torch.cat([before, x], dim=-1)


class Tiles:
    """Some rows and columns at a time; keeps nothing for gradients.

    A sub-slice too wide for one tile is attended to by columns: for every column of tiles all rows, so that its keys and values stay in the
    processor's cache too, with a running softmax (Milakov & Gimelshein 2018).
    """

    def __init__(self, bias: SparseBias) -> None:
        self.bias = bias
        self.q: Tensor | None = None  # (H, T, l * D/H) after l layers
        self.k: Tensor | None = None
        self.bounds = torch.tensor(bias.bounds, device=bias.apart.device)
        sizes = self.bounds.diff()
        self.width = sizes.clamp(1, BLOCK // LEAST_ROWS)  # of the tiles of a sub-slice
        self.height = torch.minimum(sizes.clamp(min=1), BLOCK // self.width)
        n_across, self.n_down = -(-sizes // self.width), -(-sizes // self.height)
        self.first = F.pad((n_across * self.n_down).cumsum(0), (1, 0))  # tile of a sub-slice
        self.key, order = self._key(*bias.entries()).sort()
        self.place = self.key % BLOCK
        self.value = bias.values().T.contiguous().index_select(1, order)  # (H, M); in this order of steps, for columns are slow to gather
        self.starts = torch.searchsorted(self.key, torch.arange(int(self.first[-1]) + 1, device=order.device) * BLOCK).tolist()  # of every tile

    def _key(self, row: Tensor, column: Tensor) -> Tensor:
        """Place of entries in their tile, plus BLOCK for every tile before it."""
        b = torch.searchsorted(self.bounds, row, right=True) - 1
        row, height, width = row - self.bounds[b], self.height[b], self.width[b]
        tile = self.first[b] + column // width * self.n_down[b] + row // height
        return tile * BLOCK + row % height * width + column % width

    def _scores(self, first: Tensor, second: Tensor) -> Tensor | float:
        """Sum of the scores of all layers of pairs of tokens, (P, H)."""
        if self.q is None or self.k is None:
            return 0.0
        dtype = self.bias.apart.dtype
        return (self.q[:, first].to(dtype) * self.k[:, second].to(dtype)).sum(-1).T

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, dropout: float) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("the pair state in tiles keeps nothing for gradients; choose another form, or torch.no_grad()")
        dtype = self.value.dtype
        q, k = (x.to(dtype).transpose(0, 1).contiguous() for x in (q, k))
        self.q, self.k = q, k = _beside(self.q, q), _beside(self.k, k)
        values = v.to(dtype).transpose(0, 1).contiguous()
        mixed = torch.zeros_like(values)
        for b, (start, stop) in enumerate(zip(self.bias.bounds, self.bias.bounds[1:], strict=False)):
            n_heads = max(1, BLOCK // max(1, (stop - start) ** 2))
            for head in range(0, len(values), n_heads):
                heads = slice(head, min(head + n_heads, len(values)))
                self._attend_within(b, heads, *(x[heads, start:stop] for x in (q, k, values, mixed)), dropout=dropout)
        return mixed.transpose(0, 1).to(v.dtype)

    def _attend_within(self, b: int, heads: slice, q: Tensor, k: Tensor, v: Tensor, mixed: Tensor, *, dropout: float) -> None:
        """Add what some heads (h) take up in sub-slice `b` to `mixed` (h, n, D/H); q, k are (h, n, l * D/H), v is (h, n, D/H)."""
        n, height, width = mixed.shape[1], int(self.height[b]), int(self.width[b])
        running = _RunningSoftmax(mixed) if n > width else None
        room = mixed.new_empty(len(mixed), height * width)
        tile = int(self.first[b])
        for left in range(0, n, width):
            columns = slice(left, left + width)
            for top in range(0, n, height):
                rows = slice(top, top + height)
                scores = self._biases(tile, heads, room).view(-1, height, width)[:, : n - top, : n - left]
                scores.baddbmm_(q[:, rows], k[:, columns].mT)
                if running is not None:
                    running.add(scores, v[:, columns], rows, dropout)
                else:
                    weights = torch.softmax(scores, -1, out=scores)
                    torch.bmm(F.dropout(weights, dropout, inplace=True) if dropout else weights, v, out=mixed[:, rows])
                tile += 1
        if running is not None:
            running.finish()

    def _biases(self, tile: int, heads: slice, room: Tensor) -> Tensor:
        """Pair bias of a tile, (heads, BLOCK at most), in `room`."""
        entries = slice(self.starts[tile], self.starts[tile + 1])
        for one, apart, of_place in zip(room, self.bias.apart[heads].tolist(), self.value[heads, entries], strict=True):
            one.fill_(apart).scatter_(0, self.place[entries], of_place)  # one head at a time: several times as fast as all together
        return room

    def of_pairs(self, wanted: Tensor) -> Tensor:
        row, column = self.bias.tokens_of(*wanted.unbind(1))
        key = self._key(row, column)
        at = torch.searchsorted(self.key, key).clamp(max=len(self.key) - 1)
        bias = torch.where((self.key[at] == key)[:, None], self.value[:, at].T, self.bias.apart)
        return bias + self._scores(row, self.bias.token[wanted[:, 0], wanted[:, 2]])


class _RunningSoftmax:
    """``softmax(scores) values`` of rows whose columns come bit by bit."""

    def __init__(self, mixed: Tensor) -> None:
        self.mixed = mixed  # (H, n, D/H) of zeros, to which values are added
        self.highest = torch.full_like(mixed[..., :1], torch.finfo(mixed.dtype).min)  # score of every row so far
        self.total = torch.zeros_like(self.highest)

    def add(self, scores: Tensor, values: Tensor, rows: slice, dropout: float) -> None:
        highest, total, mixed = self.highest[:, rows], self.total[:, rows], self.mixed[:, rows]
        now = torch.maximum(highest, scores.amax(-1, keepdim=True))
        shrink = (highest - now).exp_()
        weights = scores.sub_(now).exp_()
        total.mul_(shrink).add_(weights.sum(-1, keepdim=True))
        weights = F.dropout(weights, dropout, inplace=True) if dropout else weights
        mixed.mul_(shrink).baddbmm_(weights, values)
        highest.copy_(now)

    def finish(self) -> None:
        self.mixed /= self.total


class Concatenated:
    """Plain scaled-dot-product attention with a dense bias and ever wider heads, the tokens of a sub-slice filled up to the largest."""

    def __init__(self, bias: SparseBias) -> None:
        self.dense, self.shape = bias.dense(), bias.is_padding.shape
        n_tokens, n_places = bias.bounds[-1], bias.is_padding.numel()
        self.places = None if n_tokens == n_places else (~bias.is_padding).flatten().nonzero()[:, 0]  # (T,), None: every place is a token
        self.q: Tensor | None = None  # (B, H, N, l * D/H) after l layers
        self.k: Tensor | None = None
        self.mask: Tensor | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, dropout: float) -> Tensor:
        q, k, v = (self._padded(x) for x in (q, k, v))
        self.q, self.k = _beside(self.q, q), _beside(self.k, k)
        mask = self._mask(q.dtype)
        mixed = F.scaled_dot_product_attention(self.q, self.k, v, attn_mask=mask, dropout_p=dropout, scale=1.0).transpose(1, 2).flatten(0, 1)
        return mixed if self.places is None else mixed.index_select(0, self.places)

    def _padded(self, x: Tensor) -> Tensor:
        """(T, H, d) -> (B, H, N, d)."""
        if self.places is not None:
            x = x.new_zeros(self.shape.numel(), *x.shape[1:]).index_copy(0, self.places, x)
        return x.unflatten(0, self.shape).transpose(1, 2)

    def _mask(self, dtype: torch.dtype) -> Tensor:
        """The bias in what fused kernels ask for, whose softmax is in float32 whatever this is; gradients of layers are added up in float32."""
        if torch.is_grad_enabled() or self.dense.dtype == dtype:
            return self.dense.to(dtype)
        if self.mask is None:
            self.mask = self.dense.to(dtype)
        return self.mask

    def of_pairs(self, wanted: Tensor) -> Tensor:
        b, i, j = wanted.unbind(1)
        bias = self.dense[b, :, i, j]
        if self.q is None or self.k is None:
            return bias
        return bias + (self.q[b, :, i].to(bias.dtype) * self.k[b, :, j].to(bias.dtype)).sum(-1)
