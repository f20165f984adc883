"""Macro scale: the tissue as a few virtual cells, one per cluster of cells that lie close and express alike."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from pydantic import Field
from scipy.sparse import csr_matrix

from corpus.slice import FloatArray, IntArray
from stofm.config import FrozenModel

BLOCK_CELLS = 8192


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


def make_virtual_cells(coords_um: FloatArray, embeddings: FloatArray, config: VirtualCellConfig) -> VirtualCells:
    """Cluster a slice on its places and expression, side by side and each scaled to unit spread.

    The result follows the order of the rows given: hand them over in `tissue_order`, and neither the file's row order
    nor the way the tissue lies matters.

    Parameters
    ----------
    coords_um : (n, 2) float64, micrometres
    embeddings : (n, 256) float32
    config : VirtualCellConfig

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


def virtual_cells_of(of_cell: IntArray, coords_um: FloatArray, embeddings: FloatArray) -> VirtualCells:
    """Return the virtual cells of clusters 0, 1, ... of cells, (n,) int64."""
    sizes = np.bincount(of_cell)
    return VirtualCells(
        coords_um=_means(coords_um, of_cell, sizes),
        embeddings=_means(embeddings, of_cell, sizes).astype(np.float32),
        sizes=sizes,
        of_cell=of_cell,
    )


def _cluster(coords_um: FloatArray, embeddings: FloatArray, n_clusters: int, config: VirtualCellConfig) -> IntArray:
    """k-means labels without gaps, (n,) int64; on one thread, since sums over several come in the order in which they finish."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters: fewer virtual cells
        scores = _principal_scores(embeddings, config.n_components)
        features = np.hstack([_unit_spread(coords_um) * config.space_weight**0.5, _unit_spread(scores) * (1 - config.space_weight) ** 0.5])
        labels = KMeans(n_clusters, n_init=1, random_state=config.seed).fit_predict(features)
    return np.unique(labels, return_inverse=True)[1]


def _principal_scores(embeddings: FloatArray, n_components: int) -> FloatArray:
    """Scores of the leading principal components, (n, n_components) float64."""
    mean = embeddings.mean(axis=0, dtype=np.float64)
    scatter = np.zeros((embeddings.shape[1], embeddings.shape[1]))
    for block in _blocks(len(embeddings)):
        centred = embeddings[block] - mean
        scatter += centred.T @ centred
    leading = np.linalg.eigh(scatter)[1][:, : -n_components - 1 : -1]
    return np.vstack([(embeddings[block] - mean) @ leading for block in _blocks(len(embeddings))])


def _unit_spread(points: FloatArray) -> FloatArray:
    """Centre points and scale them to a mean squared length of 1; points that all coincide become zeros."""
    centred = points - points.mean(axis=0)
    spread = np.sqrt((centred**2).sum(axis=1).mean())
    return centred / spread if spread > 1e-9 else np.zeros_like(centred)


def _means(values: FloatArray, of_cell: IntArray, sizes: IntArray) -> FloatArray:
    """Mean of the rows of each cluster, (V, D) float64."""
    sums = np.zeros((len(sizes), values.shape[1]))
    for block in _blocks(len(values)):
        members = of_cell[block]
        sums += csr_matrix((np.ones(len(members)), (members, np.arange(len(members)))), shape=(len(sizes), len(members))) @ values[block]
    return sums / sizes[:, None]


def _blocks(n_cells: int) -> list[slice]:
    """Rows to work through a block at a time, so that not all embeddings are in float64 at once."""
    return [slice(start, start + BLOCK_CELLS) for start in range(0, n_cells, BLOCK_CELLS)]
