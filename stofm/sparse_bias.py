"""The pair bias of a batch, as what it consists of: a value for every pair, and two constants for all other entries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stofm.geometry import Pairs

ALIGNED = 8  # numbers


@dataclass(frozen=True, eq=False)
class SparseBias:
    """Bias of every entry of a batch.

    Tokens are also numbered through the batch, padding left out: T of them, those of sub-slice b from ``bounds[b]`` on.

    Attributes
    ----------
    pairs : Pairs
    of_pair : (E, H) float
        Bias of each pair, the same both ways.
    apart : (H,) float
        Of two cells that are no pair.
    itself : (H,) float
        Of a cell with itself.
    is_padding : (B, N) bool
    """

    pairs: Pairs
    of_pair: Tensor
    apart: Tensor
    itself: Tensor
    is_padding: Tensor

    @cached_property
    def bounds(self) -> list[int]:
        """B + 1 numbers: where the tokens of each sub-slice begin, and where the last one's end."""
        return [0, *(~self.is_padding).sum(dim=1).cumsum(0).tolist()]

    @cached_property
    def token(self) -> Tensor:
        """(B, N) int64, number of each token; of no use at padding."""
        return (~self.is_padding).flatten().cumsum(0).sub_(1).view_as(self.is_padding)

    def tokens_of(self, b: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """Number of the first token through the batch, and of the second within its sub-slice."""
        return self.token[b, i], self.token[b, j] - torch.tensor(self.bounds, device=b.device)[b]

    def entries(self) -> tuple[Tensor, Tensor]:
        """Row (M,), numbered through the batch, and column (M,), within its sub-slice, of all entries of pairs and of cells with themselves."""
        row, column = self.tokens_of(*self.pairs.entries())
        b, i = (~self.is_padding).nonzero(as_tuple=True)
        same_row, same_column = self.tokens_of(b, i, i)
        return torch.cat([row, same_row]), torch.cat([column, same_column])

    def values(self) -> Tensor:
        """Bias of these entries, (M, H)."""
        itself = self.itself.expand(self.bounds[-1], -1)
        return torch.cat([self.of_pair, self.of_pair[: self.pairs.n_mutual], itself])

    def dense(self) -> Tensor:
        """Return all entries, (B, H, N, N); columns of padding are -inf, but in a sub-slice of padding alone.

        Rows begin at multiples of `ALIGNED` numbers, as fused kernels ask for; they would copy it otherwise, layer by layer.
        """
        B, N = self.is_padding.shape
        head = torch.arange(len(self.apart), device=self.apart.device)
        b, i, j = (x[:, None] for x in self.pairs.entries())
        of_entry = torch.cat([self.of_pair, self.of_pair[: self.pairs.n_mutual]])  # (M, H)
        width = -(-N // ALIGNED) * ALIGNED
        bias = self.apart[:, None, None].expand(B, -1, N, width).index_put((b, head, i, j), of_entry)[..., :N]
        bias.diagonal(dim1=2, dim2=3).copy_(self.itself[:, None])
        if self.bounds[-1] == B * N:
            return bias
        is_padding = self.is_padding & ~self.is_padding.all(dim=1, keepdim=True)
        return bias.masked_fill_(is_padding[:, None, None, :], -torch.inf)
