"""Distances and neighbours inside a sub-slice, computed where they are used and from coordinates alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stofm.batch import SubSliceBatch

TIE = 1e-4  # relative; cells this little farther than the k-th nearest are neighbours too, as on a spot grid


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of cells that see each other's distance, each unordered pair once.

    Attributes
    ----------
    batch, first, second : (E,) int64
        Sub-slice and the two cells, ``first < second``.
    distance_um : (E,) float32, micrometres
    n_mutual : int, optional
        Pairs from here on hold one way only, from `first` to `second`, in either order; by default there are none.
    """

    batch: Tensor
    first: Tensor
    second: Tensor
    distance_um: Tensor
    n_mutual: int | None = None

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sub-slice, row and column of the entries of an (B, N, N) array: those of all pairs, then those of the mutual ones the other way."""
        there, back = (self.batch, self.first, self.second), (self.batch, self.second, self.first)
        b, i, j = (torch.cat([one, other[: self.n_mutual]]) for one, other in zip(there, back, strict=True))
        return b, i, j


def find_pairs(batch: SubSliceBatch, *, n_neighbors: int) -> Pairs:
    """Pair every real cell with its nearest real cells, and every virtual cell with all cells.

    A cell's neighbours are its `n_neighbors` nearest and whatever ties with the last of them; two cells are a pair if
    either is the other's neighbour. So the pairs do not depend on the order of the cells.
    """
    x, y = batch.coords_um.mT.contiguous().unbind(1)  # each (B, N); large arrays are worked on in place, for new memory costs more than arithmetic
    squared = (x[:, :, None] - x[:, None, :]).square_()  # (B, N, N)
    squared += (y[:, :, None] - y[:, None, :]).square_()
    no_cell = torch.where(batch.is_cell, 0.0, torch.inf).to(squared)  # (B, N)
    between_cells = squared + no_cell[:, None, :]  # (B, N, N); infinite where one is no cell, or both are the same
    between_cells += no_cell[:, :, None]
    between_cells.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    farthest = _kth_smallest(between_cells, min(n_neighbors, x.shape[1])) * (1 + TIE) ** 2  # (B, N)
    reach = farthest.clamp(max=torch.finfo(squared.dtype).max)  # of a cell with fewer others: all that are cells
    is_pair = between_cells <= torch.maximum(reach[:, :, None], reach[:, None, :])
    b, v = batch.is_virtual.nonzero(as_tuple=True)
    is_pair[b, v] = ~batch.is_padding[b]
    is_pair[b, :, v] = ~batch.is_padding[b]
    b, i, j = is_pair.triu_(1).nonzero(as_tuple=True)
    return Pairs(b, i, j, squared[b, i, j].sqrt_())


def _kth_smallest(values: Tensor, k: int) -> Tensor:
    """Return the k-th smallest of the last axis; (..., M) -> (...)."""
    if values.device.type == "cpu":  # numpy takes less than half the time
        return torch.from_numpy(np.partition(values.detach().numpy(), k - 1, axis=-1)[..., k - 1])
    return values.kthvalue(k, dim=-1).values
