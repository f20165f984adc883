"""The extraction of the published model: no physical unit, squares along the axes of the file, virtual cells by Leiden.

For published checkpoints alone, which expect their input exactly so: turning the tissue changes the squares, the scale and the
clusters. `corpus.sub_slices` and `corpus.virtual_cells` do better by everything trained here.

Where descriptions leave something open we do this, and it gives what the published code gives where that could be compared:
squares start at the corner of least x and y and are taken column by column; cells keep the order of the file; the nearest
neighbours of a token include itself and the `<cls>` at the origin; two tokens have a distance if either is the other's neighbour;
principal components have the signs that scikit-learn gives; Leiden runs until nothing improves, by igraph, with seed 0; the embedding
of a virtual cell is a plain mean. Not compared: neighbours are exact, where scanpy approximates those of large slices, and a square
with too many cells is cut into equal runs of about 1,000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from corpus.slice import FloatArray, IntArray
from corpus.virtual_cells import VirtualCells, virtual_cells_of
from stofm.compiled import keep_umap_compiled
from stofm.errors import BadSlice

DIAGONAL = 100.0  # of the bounding box, after scaling
N_CELLS, MOST_CELLS = 1000, 2000
N_NEIGHBORS, NO_DISTANCE = 50, 100.0
CLUSTER_NEIGHBORS, PLACE_WEIGHT = 10, 0.2


@dataclass(frozen=True, eq=False)
class PublishedScales:
    """Micro and macro scale of one slice.

    Attributes
    ----------
    places : (n, 2) float64
        Places of the cells, in hundredths of the diagonal of the bounding box, from its middle.
    virtual : VirtualCells
        Places in the same unit.
    sub_slices : list of (n_i,) int64
        Rows of each sub-slice, increasing; every cell is in exactly one.
    """

    places: FloatArray
    virtual: VirtualCells
    sub_slices: list[IntArray]


def extract_published(coords: FloatArray, embeddings: FloatArray) -> PublishedScales:
    """Extract both scales of a slice whose cells are in the order of their file.

    Parameters
    ----------
    coords : (n, 2) float64, any unit
    embeddings : (n, 256) float32

    Raises
    ------
    BadSlice
        ``DEGENERATE_GEOMETRY``: all cells lie in one point, or more than 1,000 in a line along an axis.
    """
    places = _normalised(coords)
    of_cell = _clusters(places, embeddings)
    return PublishedScales(places, virtual_cells_of(of_cell, places, embeddings), _squares(places))


def published_distances(places: FloatArray, virtual_places: FloatArray) -> FloatArray:
    """Return the distances that the published transformer reads of one sub-slice.

    Parameters
    ----------
    places : (n, 2) float
        Cells of the sub-slice.
    virtual_places : (V, 2) float
        All virtual cells of the slice.

    Returns
    -------
    (1 + V + n, 1 + V + n) float32
        Tokens in the order `<cls>`, virtual cells, cells; 100 where no distance is known, two cells at one place among them.
    """
    tokens = np.concatenate([np.zeros((1, 2)), virtual_places, places])
    n_special = 1 + len(virtual_places)
    near, neighbors = cKDTree(tokens).query(tokens, k=range(1, min(N_NEIGHBORS, len(tokens) - 1) + 1))
    distances = np.full((len(tokens), len(tokens)), NO_DISTANCE)
    np.put_along_axis(distances, neighbors, np.where(near == 0, NO_DISTANCE, near), axis=1)
    distances = np.minimum(distances, distances.T)
    to_special = np.linalg.norm(tokens[:, None] - tokens[None, 1:n_special], axis=2)  # (1 + V + n, V)
    distances[:, 1:n_special], distances[1:n_special] = to_special, to_special.T
    distances[0], distances[:, 0] = 0.0, 0.0
    np.fill_diagonal(distances, 0.0)
    return distances.astype(np.float32)


def _normalised(coords: FloatArray) -> FloatArray:
    low, high = coords.min(axis=0), coords.max(axis=0)
    diagonal = float(np.linalg.norm(high - low))
    if diagonal == 0:
        raise BadSlice("DEGENERATE_GEOMETRY", "all cells lie in one point; expected a tissue with an extent. Use `scheme: tissue`.")
    return (coords - (low + high) / 2) * (DIAGONAL / diagonal)


def _squares(places: FloatArray) -> list[IntArray]:
    """Rows of the cells in each square that holds some; a slice of at most 1,000 cells is one."""
    n = len(places)
    if n <= N_CELLS:
        return [np.arange(n)]
    side = float(np.sqrt(np.prod(np.ptp(places, axis=0)) / (n // N_CELLS + 1)))
    if side == 0:
        raise BadSlice("DEGENERATE_GEOMETRY", f"{n} cells lie in one line along an axis; expected an area to lay squares on. Use `scheme: tissue`.")
    column_row = np.floor((places - places.min(axis=0)) / side).astype(np.int64)
    _, square = np.unique(column_row, axis=0, return_inverse=True)
    members = np.split(np.argsort(square, kind="stable"), np.cumsum(np.bincount(square))[:-1])
    return [run for rows in members for run in np.array_split(rows, len(rows) // N_CELLS if len(rows) >= MOST_CELLS else 1)]


def _clusters(places: FloatArray, embeddings: FloatArray) -> IntArray:
    """Leiden clusters of places added to principal components, (n,) int64."""
    import scanpy
    from anndata import AnnData
    from sklearn.decomposition import PCA

    n = len(places)
    if n <= 2:
        return np.zeros(n, np.int64)
    keep_umap_compiled()  # by which scanpy weighs neighbours
    components = PCA(2, random_state=0).fit_transform(embeddings) if np.ptp(embeddings, axis=0).any() else np.zeros((n, 2))
    feature = PLACE_WEIGHT * _within_unit_circle(places) + (1 - PLACE_WEIGHT) * _within_unit_circle(components)
    table = AnnData(np.zeros((n, 1), np.float32), obsm={"feature": feature})
    scanpy.pp.neighbors(table, use_rep="feature", transformer=_ExactNeighbors(min(CLUSTER_NEIGHBORS, n - 1)))
    scanpy.tl.leiden(table, resolution=1, flavor="igraph", n_iterations=-1, directed=False, random_state=0)
    return table.obs["leiden"].cat.codes.to_numpy().astype(np.int64)


def _within_unit_circle(points: FloatArray) -> FloatArray:
    """Points divided by the largest norm of one; zeros stay."""
    return points / (np.linalg.norm(points, axis=1).max() or 1.0)


class _ExactNeighbors:
    """What scanpy asks for the graph of the nearest points, each point among its own."""

    def __init__(self, n_neighbors: int) -> None:
        self.n_neighbors = n_neighbors

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {"n_neighbors": self.n_neighbors}

    def fit_transform(self, points: FloatArray) -> csr_matrix:
        distances, neighbors = cKDTree(points).query(points, k=range(1, self.n_neighbors + 1))
        ends = np.arange(len(points) + 1) * self.n_neighbors
        return csr_matrix((distances.ravel(), neighbors.ravel(), ends), shape=(len(points), len(points)))
