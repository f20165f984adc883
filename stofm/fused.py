"""The pair state as a rule that the attention kernel follows: distances, neighbours and bias are made inside it, from coordinates and a table.

Nothing here grows faster than the number of tokens. Two cells are a pair if they lie within the reach of either, the distance to the farthest of its
neighbours (`stofm.geometry`), so a number per cell stands for all pairs. Tokens of all sub-slices follow one another in one sequence, and blocks
of scores between different sub-slices are skipped. Kernels take seconds to make and are made for one size, so the sequence is filled up to a power
of two; nothing is computed for what fills it.

Compiled on GPUs (FlexAttention makes the kernel). Elsewhere it is evaluated plainly, N x N scores at a time, to be compared with the other forms.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from stofm.batch import SubSliceBatch
from stofm.geometry import TIE
from stofm.pair_bias import FARTHEST_UM, PairBias

BLOCK = 128  # tokens of a block of scores; what the kernels are tuned for
ROWS_AT_A_TIME = 1024  # of distances, where reaches are found


class Fused:
    """Pair state of a batch under `scheme: stofm`, for inference.

    Parameters
    ----------
    pair_bias : PairBias
        A table is made of it, if it has none.
    batch : SubSliceBatch
    n_neighbors : int
        Nearest cells whose distance a cell sees.
    n_layers : int
        That will attend.
    """

    def __init__(self, pair_bias: PairBias, batch: SubSliceBatch, n_neighbors: int, n_layers: int) -> None:
        if pair_bias.table is None:
            pair_bias.tabulate()
        assert pair_bias.table is not None
        self.table, self.constants = pair_bias.table, (pair_bias.apart, pair_bias.itself, pair_bias.with_virtual)  # each (H,)
        self.with_cls, self.is_padding = pair_bias.with_cls, batch.is_padding
        is_there = ~batch.is_padding
        sizes = is_there.sum(dim=1)
        self.n_tokens = int(sizes.sum())  # T
        n_places = max(BLOCK, 1 << (self.n_tokens - 1).bit_length())  # P, a power of two
        sub_slice = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
        (x, y), is_cell = batch.coords_um[is_there].T.contiguous(), batch.is_cell[is_there]
        parts = zip(*(one.split(sizes.tolist()) for one in (x, y, is_cell)), strict=True)
        reach = torch.cat([squared_reach(one_x, one_y, one_is_cell, n_neighbors) for one_x, one_y, one_is_cell in parts])
        self.mask = blocks_within(sub_slice, n_places)
        self.x, self.y, self.reach, self.is_cell, self.is_virtual = (
            functional.pad(one, (0, n_places - self.n_tokens)) for one in (x, y, reach, is_cell, batch.is_virtual[is_there])
        )  # each (P,)
        if batch.is_cls is not None:
            self.is_cls = functional.pad(batch.is_cls[is_there], (0, n_places - self.n_tokens))
        self.n_layers, self.layer = n_layers, 0

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, dropout: float) -> Tensor:
        if torch.is_grad_enabled() or dropout:
            raise RuntimeError("the fused pair state has neither gradients nor dropout; choose another form, or torch.no_grad()")
        H, d = q.shape[1:]
        if not self.layer:  # zeros for the layers to come, so that all have one width
            self.q, self.k = q.new_zeros(2, 1, H, len(self.x), self.n_layers * d)
            self.v = v.new_zeros(1, H, len(self.x), d)
        there, width = slice(self.n_tokens), slice(self.layer * d, (self.layer + 1) * d)
        self.q[0, :, there, width], self.k[0, :, there, width], self.v[0, :, there] = (one.transpose(0, 1) for one in (q, k, v))
        self.layer += 1
        attention = compiled_attention() if v.is_cuda else plain_attention
        mixed = attention(self.q, self.k, self.v, score_mod=self._score, block_mask=self.mask, scale=1.0)  # (1, H, P, D/H)
        return mixed[0, :, there].transpose(0, 1)

    def of_pairs(self, wanted: Tensor) -> Tensor:
        token = (~self.is_padding).flatten().cumsum(0).sub_(1).view_as(self.is_padding)
        b, i, j = wanted.unbind(1)
        i, j = token[b, i], token[b, j]
        heads = torch.arange(self.table.value.shape[1], device=i.device)
        scores = (self.q[0, :, i].float() * self.k[0, :, j].float()).sum(-1)  # (H, P)
        return self._bias(heads, i[:, None], j[:, None]) + scores.T

    def _score(self, score: Tensor, b: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + self._bias(head, i, j)

    def _bias(self, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Pair bias of heads and tokens, numbered through the batch, of shapes that broadcast; as `PairBias` has it."""
        apart, itself, with_virtual = self.constants
        dx, dy = self.x[i] - self.x[j], self.y[i] - self.y[j]
        squared = dx * dx + dy * dy
        has_virtual = self.is_virtual[i] | self.is_virtual[j]
        is_near = self.is_cell[i] & self.is_cell[j] & (squared <= torch.maximum(self.reach[i], self.reach[j]))
        of_pair = self.table.of_heads(squared.sqrt().clamp(max=FARTHEST_UM), head) + torch.where(has_virtual, with_virtual[head], 0.0)
        bias = torch.where(has_virtual | is_near, of_pair, apart[head])
        if self.with_cls is not None:
            bias = torch.where(self.is_cls[i] | self.is_cls[j], self.with_cls[head], bias)
        return torch.where(i == j, itself[head], bias)


def blocks_within(sub_slice: Tensor, n_places: int) -> BlockMask:
    """Blocks of scores that hold two tokens of one sub-slice, of all blocks among `n_places` tokens; `sub_slice` (T,) is sorted."""
    n_blocks, column = n_places // BLOCK, torch.arange(n_places // BLOCK, device=sub_slice.device, dtype=torch.int32)
    start = column[: -(-len(sub_slice) // BLOCK)] * BLOCK  # of blocks that hold a token
    first, last = sub_slice[start], sub_slice[(start + BLOCK - 1).clamp(max=len(sub_slice) - 1)]
    left = torch.searchsorted(sub_slice, first) // BLOCK
    right = (torch.searchsorted(sub_slice, last, right=True) - 1) // BLOCK
    n_each, columns = column.new_zeros(n_blocks), column.expand(n_blocks, -1).clone()
    n_each[: len(start)] = (right - left + 1).int()
    columns[: len(start)] = (left.int()[:, None] + column).clamp(max=n_blocks - 1)  # the first so many count
    of_place = functional.pad(sub_slice, (0, n_places - len(sub_slice)), value=-1)

    def within(b: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return of_place[i] == of_place[j]

    return BlockMask.from_kv_blocks(n_each[None, None], columns[None, None], BLOCK_SIZE=BLOCK, mask_mod=within, seq_lengths=(n_places, n_places))


def squared_reach(x: Tensor, y: Tensor, is_cell: Tensor, n_neighbors: int) -> Tensor:
    """Squared distance of each token of a sub-slice to the last of its neighbours, with room for ties; 0 for what is no cell. (n,) -> (n,)"""
    reach = torch.zeros_like(x)
    x, y = x[is_cell], y[is_cell]
    if len(x) > 1:
        k = min(n_neighbors, len(x) - 1) + 1  # the nearest is the cell itself
        blocks = zip(x.split(ROWS_AT_A_TIME), y.split(ROWS_AT_A_TIME), strict=True)
        nearest = [((of_x[:, None] - x).square_() + (of_y[:, None] - y).square_()).kthvalue(k).values for of_x, of_y in blocks]
        reach[is_cell] = torch.cat(nearest) * (1 + TIE) ** 2
    return reach


@cache
def compiled_attention() -> Any:
    """FlexAttention, whose kernel is made when it is first called, and again for other shapes."""
    return torch.compile(flex_attention, dynamic=False)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, *, score_mod: Any, block_mask: BlockMask, scale: float) -> Tensor:
    """The same, every score at once."""
    i, head = torch.arange(q.shape[2], device=q.device), torch.arange(q.shape[1], device=q.device)[:, None, None]
    batch = i.new_zeros(())
    scores = score_mod(q @ k.mT * scale, batch, head, i[:, None], i)  # (1, H, P, P)
    is_seen = block_mask.mask_mod(batch, head, i[:, None], i)
    return scores.masked_fill(~is_seen, -torch.inf).softmax(-1).to(v.dtype) @ v
