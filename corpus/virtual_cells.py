"""Macro scale: the tissue as a few virtual cells, one per cluster of cells that lie close and express alike."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pydantic import Field
from scipy.sparse import csr_matrix

from corpus.cell_arrays import CellArray, row_blocks, sum_of_rows
from corpus.slice import FloatArray, IntArray
from stofm.config import FrozenModel

MOST_FITTED = 200_000  # cells


class VirtualCellConfig(FrozenModel):
    """How many virtual cells a slice gets, and what makes a cluster."""

    n_max: int = Field(32, ge=0, description="Most virtual cells of a slice; 0: none (for ablations).")
    cells_each: int = Field(50, ge=1, description="At least this many cells per virtual cell, on average.")
    space_weight: float = Field(0.5, ge=0, le=1, description="Share of the clustering distance that is spatial; the rest is expression.")
    n_components: int = Field(16, ge=1, description="Principal components of the cell embeddings that enter the clustering.")
    seed: int = 0

    def n_virtual(self, n_cells: int) -> int:
        """Virtual cells that are asked for in a slice of `n_cells`."""
        return min(self.n_max, max(1, n_cells // self.cells_each))


@dataclass(frozen=True, eq=False)
class VirtualCells:
    """Virtual cells of one slice.

    Attributes
    ----------
    coords_um : (V, 2) float64, micrometres
        Mean place of the members.
    embeddings : (V, 256) float32
        Mean embedding of the members.
    sizes : (V,) int64
        Members.
    of_cell : (n_cells,) int64
        The virtual cell of each cell; 0 everywhere if V is 0.
    """

    coords_um: FloatArray
    embeddings: FloatArray
    sizes: IntArray
    of_cell: IntArray


def make_virtual_cells(coords_um: FloatArray, embeddings: CellArray, config: VirtualCellConfig) -> VirtualCells:
    """Cluster a slice on its places and expression, side by side and each scaled to unit spread.

    The result follows the order of the rows given: hand them over in `tissue_order`, and neither the file's row order
    nor the way the tissue lies matters. Beyond `MOST_FITTED` cells, clusters are found on an even share of the rows, and all cells join the nearest.

    Parameters
    ----------
    coords_um : (n, 2) float64, micrometres
    embeddings : (n, 256) float32

    Notes
    -----
    k-means instead of the published Leiden on summed features: distances between concatenated features are the same
    for a turned tissue, and a rounding error moves a mean a little where it can send a graph partition elsewhere.
    """
    n = len(coords_um)
    n_clusters = config.n_virtual(n)
    if n_clusters == 0:
        return VirtualCells(np.zeros((0, 2)), np.zeros((0, embeddings.shape[1]), np.float32), np.zeros(0, np.int64), np.zeros(n, np.int64))
    return virtual_cells_of(_cluster(coords_um, embeddings, n_clusters, config), coords_um, embeddings)


def virtual_cells_of(of_cell: IntArray, coords_um: FloatArray, embeddings: CellArray) -> VirtualCells:
    """Return the virtual cells of clusters 0, 1, ... of cells, (n,) int64."""
    sizes = np.bincount(of_cell)
    return VirtualCells(
        coords_um=means_of(of_cell, sizes, coords_um),
        embeddings=means_of(of_cell, sizes, embeddings).astype(np.float32),
        sizes=sizes,
        of_cell=of_cell,
    )


def _cluster(coords_um: FloatArray, embeddings: CellArray, n_clusters: int, config: VirtualCellConfig) -> IntArray:
    """k-means labels without gaps, (n,) int64; on one thread, since sums over several come in the order in which they finish."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    n = len(coords_um)
    n_fitted = min(n, MOST_FITTED)
    fitted = np.arange(n_fitted) * n // n_fitted
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters: fewer virtual cells
        project = _principal_axes(embeddings, fitted, config.n_components)
        features = np.empty((n_fitted, 2 + min(config.n_components, embeddings.shape[1])))
        for block in row_blocks(n_fitted):
            features[block] = np.hstack([coords_um[fitted[block]], project(embeddings[fitted[block]])])
        scalings = _unit_spread(features[:, :2], config.space_weight), _unit_spread(features[:, 2:], 1 - config.space_weight)

        def scale(some: FloatArray) -> FloatArray:
            return np.hstack([scaling(part) for scaling, part in zip(scalings, (some[:, :2], some[:, 2:]), strict=True)])

        for block in row_blocks(n_fitted):
            features[block] = scale(features[block])
        means = KMeans(n_clusters, n_init=1, random_state=config.seed, copy_x=False).fit(features)
        del features
        labels = means.labels_
        if n_fitted < n:
            labels = np.concatenate([means.predict(scale(np.hstack([coords_um[rows], project(embeddings[rows])]))) for rows in row_blocks(n)])
    return (np.cumsum(np.bincount(labels) > 0) - 1)[labels]


def _principal_axes(embeddings: CellArray, rows: IntArray, n_components: int) -> Callable[[FloatArray], FloatArray]:
    """Return what gives the scores, (m, n_components) float64, of embeddings, (m, 256), on the leading principal components of these rows."""
    mean = sum_of_rows(lambda block: embeddings[rows[block]], len(rows), np.float64) / len(rows)
    scatter = np.zeros((embeddings.shape[1], embeddings.shape[1]))
    for block in row_blocks(len(rows)):
        centred = embeddings[rows[block]] - mean
        scatter += centred.T @ centred
    leading = np.linalg.eigh(scatter)[1][:, : -n_components - 1 : -1]
    return lambda some: (some - mean) @ leading


def _unit_spread(points: FloatArray, weight: float) -> Callable[[FloatArray], FloatArray]:
    """Return what centres points by these, and scales them to a mean squared length of `weight`; where these all coincide, to zeros."""
    n = len(points)
    centre = sum_of_rows(lambda block: points[block], n, np.float64) / n
    spread = np.sqrt(np.concatenate([((points[block] - centre) ** 2).sum(axis=1) for block in row_blocks(n)]).mean())
    return lambda some: (some - centre) / spread * weight**0.5 if spread > 1e-9 else np.zeros_like(some)


def means_of(of_cell: IntArray, sizes: IntArray, values: CellArray) -> FloatArray:
    """Mean of the rows of each cluster, (V, D) float64."""
    sums = np.zeros((len(sizes), values.shape[1]))
    for block in row_blocks(len(values)):
        members = of_cell[block]
        sums += csr_matrix((np.ones(len(members)), (members, np.arange(len(members)))), shape=(len(sizes), len(members))) @ values[block]
    return sums / sizes[:, None]
