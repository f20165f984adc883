"""The context of a sub-slice: cells around it that it sees and another one owns, so that no cell is read at an edge of what is seen."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from corpus.slice import FloatArray, IntArray

TIE_UM = 1e-3  # cells whose distances differ by no more are a tie


def cells_within(rows: IntArray, coords_um: FloatArray, halo_um: float) -> IntArray:
    """Return the other cells at most `halo_um` from one of `rows`, increasing; a tie with that distance counts."""
    reach = halo_um + TIE_UM
    centre = coords_um[rows].mean(axis=0)
    radius = np.linalg.norm(coords_um[rows] - centre, axis=1).max()
    is_near = np.linalg.norm(coords_um - centre, axis=1) <= radius + reach
    is_near[rows] = False
    near = np.flatnonzero(is_near)
    return near[np.isfinite(cKDTree(coords_um[rows]).query(coords_um[near], distance_upper_bound=reach)[0])]


def nearest_cells(rows: IntArray, tree: cKDTree, n_most: int) -> IntArray:
    """Return the other cells that lie nearest to `rows`, increasing: at most `n_most`, and none that ties with one left out.

    A number of cells means the same where they are spots 100 um apart and where they are cells 10 um apart, and it bounds the memory of a
    sub-slice. Distances are those to the nearest of `rows`; on a grid they come in rings, and a ring is taken whole or not at all.

    Parameters
    ----------
    rows : (n,) int64
    tree : cKDTree of (n_cells, 2) float64, micrometres
        The places among which context is looked for; `rows` are rows of it.
    n_most : int
    """
    coords_um = tree.data
    own = cKDTree(coords_um[rows])
    centre = coords_um[rows].mean(axis=0)
    radius = np.linalg.norm(coords_um[rows] - centre, axis=1).max()
    reach = max(radius * ((1 + n_most / len(rows)) ** 0.5 - 1), TIE_UM)  # of a disc among cells as dense as these
    while True:
        near = np.setdiff1d(tree.query_ball_point(centre, radius + reach), rows)
        distance = own.query(coords_um[near], distance_upper_bound=reach)[0] if len(near) else np.zeros(0)
        near, distance = near[np.isfinite(distance)], distance[np.isfinite(distance)]
        if len(near) > n_most or len(near) + len(rows) == len(coords_um):
            break
        reach *= 2
    order = np.argsort(distance, kind="stable")
    gaps = np.diff(distance[order], append=np.inf)[: min(n_most, len(order))]
    is_whole = np.flatnonzero(gaps > TIE_UM)
    return np.sort(near[order[: is_whole[-1] + 1]]) if len(is_whole) else near[:0]


def blend_weights(rows: IntArray, n_owned: int, coords_um: FloatArray) -> FloatArray:
    """Say how much what a sub-slice tells of each of its cells counts beside what others tell of the same cell.

    Cells that it owns count 1, its context the less the farther it lies, and 0 where what is seen ends. Where two sub-slices meet, both tell of a
    cell about as much, so the mean passes from one to the other without a step.

    Parameters
    ----------
    rows : (n,) int64
        Rows of its cells, the `n_owned` that it owns first.
    coords_um : (n_cells, 2) float64, micrometres

    Returns
    -------
    (n,) float32
    """
    weights = np.ones(len(rows), np.float32)
    if n_owned < len(rows):
        distance = cKDTree(coords_um[rows[:n_owned]]).query(coords_um[rows[n_owned:]])[0]
        weights[n_owned:] = 1 - distance / max(float(distance.max()), TIE_UM)
    return weights
