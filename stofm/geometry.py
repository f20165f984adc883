"""Distances and neighbours inside a sub-slice, computed where they are used and from coordinates alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from stofm.batch import SubSliceBatch

MOST_BY_MATRIX = 2048  # tokens of a sub-slice whose distances are computed all
ROWS_AT_A_TIME = 128  # of those distances on a CPU: they stay in its cache, and in memory that it already has
AT_A_BORDER, SLACK = 2.0, 1.1  # half of a border cell's surroundings are empty; cells lie unevenly
TIE = 1e-4  # relative; cells this little farther than the k-th nearest are neighbours too, as on a spot grid
PairsOfOne = tuple[np.ndarray, np.ndarray]


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
    N, device = batch.is_padding.shape[1], batch.coords_um.device
    if N <= MOST_BY_MATRIX and device.type != "cpu":
        b, i, j = _by_matrix(batch, n_neighbors)
        first, second = b * N + i, b * N + j
        dx, dy = (axis.index_select(0, first) - axis.index_select(0, second) for axis in (x.flatten() for x in batch.coords_um.unbind(-1)))
        return Pairs(b, i, j, (dx.square_() + dy.square_()).sqrt_())
    arrays = [x.detach().cpu().numpy() for x in (batch.coords_um, batch.is_cell, batch.is_virtual, batch.is_padding)]
    pairs_of = _by_rows if N <= MOST_BY_MATRIX else _by_tree
    found = [pairs_of(*one, n_neighbors=n_neighbors) for one in zip(*arrays, strict=True)]
    distances = [_distances(coords, *pairs) for coords, pairs in zip(arrays[0], found, strict=True)]
    numbers = np.repeat(np.arange(len(found)), [len(one) for one in distances])
    columns = (numbers, *map(np.concatenate, zip(*found, strict=True)), np.concatenate(distances))
    b, i, j, distance = (torch.from_numpy(column).to(device) for column in columns)
    return Pairs(b, i, j, distance)


def _distances(coords: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Distances of pairs of (N, 2) places, (E,); axis by axis and in place, which takes half the time."""
    (x, dx), (y, dy) = ((axis, axis.take(first)) for axis in coords.T)
    dx -= x.take(second)
    dy -= y.take(second)
    dx *= dx
    dy *= dy
    dx += dy
    return np.sqrt(dx, out=dx)


def with_cls_pairs(pairs: Pairs, batch: SubSliceBatch) -> Pairs:
    """Return pairs of cells and virtual cells, all of them mutual, and those of every token with the `<cls>` behind it, at distance 0."""
    assert batch.is_cls is not None
    b, i = where(~(batch.is_padding | batch.is_cls))
    last = torch.full_like(i, batch.is_cls.shape[1] - 1)
    of_cells = (pairs.batch, pairs.first, pairs.second, pairs.distance_um)
    batch_of, first, second, distance = (torch.cat(part) for part in zip(of_cells, (b, i, last, pairs.distance_um.new_zeros(len(b))), strict=True))
    return Pairs(batch_of, first, second, distance)


def _by_tree(coords: np.ndarray, is_cell: np.ndarray, is_virtual: np.ndarray, is_padding: np.ndarray, *, n_neighbors: int) -> PairsOfOne:
    """Pairs of one sub-slice by a k-d tree, in memory that grows with their number: first and second, each (E,) int64, in order."""
    cells, n = np.flatnonzero(is_cell), len(coords)
    first, second = (np.tile(np.flatnonzero(~is_padding), (is_virtual.sum(), 1)).ravel(), np.repeat(np.flatnonzero(is_virtual), (~is_padding).sum()))
    if len(cells) > 1:
        tree = cKDTree(coords[cells].astype(np.float64))
        farthest = tree.query(tree.data, k=[min(n_neighbors, len(cells) - 1) + 1])[0][:, 0]  # the nearest is the cell itself
        near = tree.query_ball_point(tree.data, farthest * (1 + TIE))
        first = np.append(first, np.repeat(cells, [len(one) for one in near]))
        second = np.append(second, cells[np.concatenate(near).astype(np.int64)])
    low, high = np.minimum(first, second), np.maximum(first, second)
    return np.divmod(np.unique((low * n + high)[low < high]), n)


def _by_rows(coords: np.ndarray, is_cell: np.ndarray, is_virtual: np.ndarray, is_padding: np.ndarray, *, n_neighbors: int) -> PairsOfOne:
    """As `_by_tree`, by the distances themselves: on CPUs the faster way for some thousand cells.

    Cells go along the longer side of the sub-slice, some at a time, each with those that lie within a window around it. What
    lies beyond is farther along that side alone than the neighbours found, or the window is doubled.
    """
    n, cells = len(coords), np.flatnonzero(is_cell)
    is_pair = np.zeros((n, n), bool)  # above the diagonal
    flat = is_pair.reshape(-1)
    for number in np.flatnonzero(is_virtual):
        is_pair[:number, number], is_pair[number, number + 1 :] = ~is_padding[:number], ~is_padding[number + 1 :]
    if len(cells) > 1:
        x, y = coords[cells, :: -1 if np.subtract(*np.ptp(coords[cells], axis=0)) < 0 else 1].T
        order = np.argsort(x, kind="stable")
        cells, x, y = cells[order], x[order], y[order]
        beside = SLACK * (AT_A_BORDER * n_neighbors * len(cells) / np.pi) ** 0.5  # cells along x that a neighbour is off, in a square
        if x[-1] > x[0]:
            beside *= (float(np.ptp(y)) / (float(x[-1]) - float(x[0]))) ** 0.5
        for start in range(0, len(cells), ROWS_AT_A_TIME):
            row, column = _near(x, y, start, n_neighbors, window=ROWS_AT_A_TIME + 2 * int(beside))
            first, second = cells[row], cells[column]
            flat[np.minimum(first, second) * n + np.maximum(first, second)] = True
    return np.divmod(np.flatnonzero(flat), n)


def _near(x: np.ndarray, y: np.ndarray, start: int, n_neighbors: int, *, window: int) -> PairsOfOne:
    """Cells from `start` on, `ROWS_AT_A_TIME` of them, and their neighbours among all cells, whose places along x increase.

    What is found does not depend on `window`, the number of cells that neighbours are sought among at first.
    """
    n, k = len(x), min(n_neighbors, len(x) - 1)
    end, window = min(start + ROWS_AT_A_TIME, n), max(window, k + 1)
    with np.errstate(over="ignore"):  # too far apart for a float32 is far
        while True:
            low = max(0, min((start + end - window) // 2, n - window))
            high = min(n, low + window)
            squared, dy = x[start:end, None] - x[low:high], y[start:end, None] - y[low:high]  # (rows, columns)
            squared *= squared
            squared += np.multiply(dy, dy, out=dy)
            np.fill_diagonal(squared[:, start - low :], np.inf)
            reach = np.partition(squared, k - 1, axis=1)[:, k - 1] * np.float32((1 + TIE) ** 2)  # (rows,)
            reach = np.minimum(reach, np.finfo(np.float32).max)
            is_whole_below = low == 0 or ((x[start:end] - x[low]) ** 2 > reach).all()
            is_whole_above = high == n or ((x[high - 1] - x[start:end]) ** 2 > reach).all()
            if is_whole_below and is_whole_above:
                break
            window *= 2
    row, column = np.divmod(np.flatnonzero(squared <= reach[:, None]), high - low)
    return start + row, low + column


def _by_matrix(batch: SubSliceBatch, n_neighbors: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sub-slice and cells of all pairs by the matrix of distances, on GPUs the fastest way for some thousand cells."""
    N = batch.is_padding.shape[1]
    nowhere = torch.where(batch.is_cell, 0.0, torch.inf)[..., None]
    x, y = (batch.coords_um + nowhere).mT.contiguous().unbind(1)  # each (B, N); infinite where there is no cell
    squared = (x[:, :, None] - x[:, None, :]).square_()  # (B, N, N), in place, for new memory costs more than arithmetic
    squared += (y[:, :, None] - y[:, None, :]).square_()  # infinite or NaN where one is no cell
    squared.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    reach = squared.kthvalue(min(n_neighbors, N), dim=-1).values * (1 + TIE) ** 2  # (B, N)
    reach = reach.clamp(max=torch.finfo(squared.dtype).max)  # of a cell with fewer others: all that are cells
    is_pair = (squared <= reach[:, :, None]) | (squared <= reach[:, None, :])
    b, v = batch.is_virtual.nonzero(as_tuple=True)
    is_pair[b, v] = ~batch.is_padding[b]
    is_pair[b, :, v] = ~batch.is_padding[b]
    b, i, j = is_pair.triu_(1).nonzero(as_tuple=True)
    return b, i, j


def where(is_pair: Tensor) -> tuple[Tensor, ...]:
    """Indices along each axis where a mask is true."""
    if is_pair.device.type == "cpu":  # numpy takes less than half the time
        return tuple(map(torch.from_numpy, np.unravel_index(np.flatnonzero(is_pair.numpy()), is_pair.shape)))
    return is_pair.nonzero(as_tuple=True)
