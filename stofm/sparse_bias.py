"""The pair bias of a batch, as what it consists of: a value for every pair, and two constants for all other entries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stofm.geometry import Pairs


@dataclass(frozen=True, eq=False)
class SparseBias:
    """Bias of every entry of a batch.

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
        Columns of padding are -inf.
    """

    pairs: Pairs
    of_pair: Tensor
    apart: Tensor
    itself: Tensor
    is_padding: Tensor

    def dense(self) -> Tensor:
        """Return all entries, (B, H, N, N)."""
        B, N = self.is_padding.shape
        of_entry = torch.cat([self.of_pair, self.of_pair[: self.pairs.n_mutual]])
        bias = self.apart.expand(B, N, N, -1).index_put(self.pairs.entries(), of_entry)  # (B, N, N, H)
        itself = torch.arange(N, device=bias.device)
        bias = bias.index_put((torch.arange(B, device=bias.device)[:, None], itself, itself), self.itself)
        return bias.permute(0, 3, 1, 2).masked_fill(self.is_padding[:, None, None, :], -torch.inf)
