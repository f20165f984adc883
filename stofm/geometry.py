"""Distances and neighbours inside a sub-slice, computed where they are used and from coordinates alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from stofm.batch import SubSliceBatch

MOST_BY_MATRIX = 2048  # cells of a sub-slice whose distances are computed all
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
    N = batch.is_padding.shape[1]
    if N <= MOST_BY_MATRIX:
        b, i, j = _by_matrix(batch, n_neighbors)
    else:
        arrays = [x.detach().cpu().numpy() for x in (batch.coords_um, batch.is_cell, batch.is_virtual, batch.is_padding)]
        parts = [torch.from_numpy(_by_tree(*one, n_neighbors=n_neighbors)) for one in zip(*arrays, strict=True)]
        numbers = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(one) for one in parts]))
        b, i, j = (x.to(batch.coords_um.device) for x in (numbers, *torch.cat(parts).unbind(1)))
    first, second = b * N + i, b * N + j
    dx, dy = (axis.index_select(0, first) - axis.index_select(0, second) for axis in (x.flatten() for x in batch.coords_um.unbind(-1)))
    return Pairs(b, i, j, (dx.square_() + dy.square_()).sqrt_())


def _by_tree(coords: np.ndarray, is_cell: np.ndarray, is_virtual: np.ndarray, is_padding: np.ndarray, *, n_neighbors: int) -> np.ndarray:
    """Pairs of one sub-slice by a k-d tree, in memory that grows with their number; (E, 2) int64, in order."""
    cells, n = np.flatnonzero(is_cell), len(coords)
    first, second = (np.tile(np.flatnonzero(~is_padding), (is_virtual.sum(), 1)).ravel(), np.repeat(np.flatnonzero(is_virtual), (~is_padding).sum()))
    if len(cells) > 1:
        tree = cKDTree(coords[cells].astype(np.float64))
        farthest = tree.query(tree.data, k=[min(n_neighbors, len(cells) - 1) + 1])[0][:, 0]  # the nearest is the cell itself
        near = tree.query_ball_point(tree.data, farthest * (1 + TIE))
        first = np.append(first, np.repeat(cells, [len(one) for one in near]))
        second = np.append(second, cells[np.concatenate(near).astype(np.int64)])
    low, high = np.minimum(first, second), np.maximum(first, second)
    return np.stack(np.divmod(np.unique((low * n + high)[low < high]), n), axis=1)


def _by_matrix(batch: SubSliceBatch, n_neighbors: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sub-slice and cells of all pairs by the matrix of distances, the faster way for some thousand cells."""
    N = batch.is_padding.shape[1]
    nowhere = torch.where(batch.is_cell, 0.0, torch.inf)[..., None]
    x, y = (batch.coords_um + nowhere).mT.contiguous().unbind(1)  # each (B, N); infinite where there is no cell
    squared = (x[:, :, None] - x[:, None, :]).square_()  # (B, N, N), in place, for new memory costs more than arithmetic
    squared += (y[:, :, None] - y[:, None, :]).square_()  # infinite or NaN where one is no cell
    squared.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    reach = _kth_smallest(squared, min(n_neighbors, N)) * (1 + TIE) ** 2  # (B, N)
    reach = reach.clamp(max=torch.finfo(squared.dtype).max)  # of a cell with fewer others: all that are cells
    is_pair = _at_most(squared, reach[:, :, None]) | _at_most(squared, reach[:, None, :])
    b, v = batch.is_virtual.nonzero(as_tuple=True)
    is_pair[b, v] = ~batch.is_padding[b]
    is_pair[b, :, v] = ~batch.is_padding[b]
    number = torch.arange(N, device=squared.device)
    is_pair &= _at_most(number[:, None] + 1, number)
    b, i, j = where(is_pair)
    return b, i, j


def _kth_smallest(values: Tensor, k: int) -> Tensor:
    """Return the k-th smallest of the last axis; (..., M) -> (...)."""
    if values.device.type == "cpu":  # numpy takes less than half the time
        return torch.from_numpy(np.partition(values.detach().numpy(), k - 1, axis=-1)[..., k - 1])
    return values.kthvalue(k, dim=-1).values


def _at_most(values: Tensor, limit: Tensor) -> Tensor:
    """``values <= limit``, broadcast."""
    if values.device.type == "cpu":  # likewise
        return torch.from_numpy(values.numpy() <= limit.numpy())
    return values <= limit


def where(is_pair: Tensor) -> tuple[Tensor, ...]:
    """Indices along each axis where a mask is true."""
    if is_pair.device.type == "cpu":  # likewise
        return tuple(map(torch.from_numpy, np.unravel_index(np.flatnonzero(is_pair.numpy()), is_pair.shape)))
    return is_pair.nonzero(as_tuple=True)
