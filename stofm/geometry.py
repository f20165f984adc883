"""Distances and neighbours inside a sub-slice, computed where they are used and from coordinates alone."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    batch: Tensor
    first: Tensor
    second: Tensor
    distance_um: Tensor


def find_pairs(batch: SubSliceBatch, *, n_neighbors: int) -> Pairs:
    """Pair every real cell with its nearest real cells, and every virtual cell with all cells.

    A cell's neighbours are its `n_neighbors` nearest and whatever ties with the last of them; two cells are a pair if
    either is the other's neighbour. So the pairs do not depend on the order of the cells.
    """
    distance = torch.cdist(batch.coords_um, batch.coords_um, compute_mode="donot_use_mm_for_euclid_dist")  # (B, N, N)
    is_cell = batch.is_cell
    N = distance.shape[1]
    itself = torch.eye(N, dtype=torch.bool, device=distance.device)
    between_cells = is_cell[:, :, None] & is_cell[:, None, :] & ~itself
    to_cells = distance.masked_fill(~between_cells, torch.inf)
    farthest = to_cells.kthvalue(min(n_neighbors, N), dim=2, keepdim=True).values  # (B, N, 1); infinite in small sub-slices
    is_neighbor = between_cells & (to_cells <= farthest * (1 + TIE))
    is_there = ~batch.is_padding
    with_virtual = (batch.is_virtual[:, :, None] | batch.is_virtual[:, None, :]) & is_there[:, :, None] & is_there[:, None, :]
    b, i, j = ((is_neighbor | is_neighbor.mT | with_virtual).triu(1)).nonzero(as_tuple=True)
    return Pairs(b, i, j, distance[b, i, j])
