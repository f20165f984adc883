"""Zero-shot clustering: slices clustered together, so that a cluster means the same in each of them; their number given, or told by stability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field
from scipy.sparse import csr_matrix

from corpus.slice import BoolArray, FloatArray, IntArray, StrArray
from downstream.probes import centre_slice
from stofm.config import FrozenModel
from stofm.errors import DataError

N_COMPONENTS = 30
N_NEIGHBORS = 15
K_MEANS_STARTS = 4  # starts of k-means; the best is kept
RESOLUTIONS = (1e-3, 30.0)  # between these the number of Leiden clusters is searched, in `SEARCH_STEPS` halvings of the log
SEARCH_STEPS = 14
STABILITY_CELLS = 4000  # cells that a resampling looks at, at most


class ClusterConfig(FrozenModel):
    """How cells are clustered."""

    method: Literal["leiden", "kmeans", "gmm"] = "leiden"
    n_clusters: int | None = Field(None, ge=2, description="Number of clusters; default: told by stability between the two below.")
    least: int = Field(2, ge=2, description="Fewest clusters tried, where their number is told by stability.")
    most: int = Field(15, ge=2, description="Most clusters tried.")
    n_resamplings: int = Field(6, ge=2, description="Pairs of subsamples whose clusterings are compared, per number of clusters.")
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Clustering:
    """Clusters of the cells of several slices.

    Attributes
    ----------
    labels : list of (n_cells,) str
        Of each slice; "cluster 1" is the largest over all slices, "" a cell without features. Equal labels are one cluster.
    stability : {number of clusters: (mean, standard error)}
        Adjusted Rand index between clusterings of two subsamples, on the cells that both hold; empty if the number was given.
    """

    labels: list[StrArray]
    n_clusters: int
    stability: dict[int, tuple[float, float]]


def cluster_slices(slices: Sequence[FloatArray], config: ClusterConfig) -> Clustering:
    """Cluster the cells of one or several slices together.

    Features of each slice are centred, so that what all its cells share does not part slices. The order of cells does not matter beyond rounding:
    they are taken in the order of their first principal component.

    Parameters
    ----------
    slices : list of (n, F) float
        Rows with NaN get no cluster.

    Raises
    ------
    DataError
        If there are fewer cells with features than clusters asked for, or than the fewest tried.
    """
    centred = [centre_slice(features) for features in slices]
    stacked = np.vstack(centred)
    is_known: BoolArray = np.asarray(np.isfinite(stacked).all(axis=1))
    wanted = config.n_clusters or config.least
    if is_known.sum() < 2 * wanted:
        raise DataError(f"slices: found {int(is_known.sum())} cells with features; expected at least {2 * wanted} for {wanted} clusters. "
                        "Ask for fewer clusters, or give more cells.")  # fmt: skip
    scores = principal_scores(stacked[is_known])
    order = np.argsort(scores[:, 0], kind="stable")
    points = np.ascontiguousarray(scores[order])
    stability = {} if config.n_clusters else stability_of(points, config)
    n_clusters = config.n_clusters or most_stable(stability)
    found = np.empty(len(points), np.int64)
    found[order] = METHODS[config.method](points, n_clusters, config.seed)
    named = np.full(len(stacked), "", dtype=object)
    named[is_known] = _names_by_size(found)
    borders = np.cumsum([len(one) for one in centred])[:-1]
    return Clustering([part.astype(str) for part in np.split(named, borders)], len(np.unique(found)), stability)


def principal_scores(features: FloatArray) -> FloatArray:
    """Leading principal components of (n, F) features, (n, <= 30) float32; the sign of each is that of its largest weight."""
    from sklearn.decomposition import PCA

    n_components = min(N_COMPONENTS, *features.shape)
    return PCA(n_components, svd_solver="covariance_eigh").fit_transform(features.astype(np.float64)).astype(np.float32)


def stability_of(points: FloatArray, config: ClusterConfig) -> dict[int, tuple[float, float]]:
    """Agreement of clusterings of two random 80 % of the cells, per number of clusters: mean and standard error of adjusted Rand indices.

    Source: subsampling as in Ben-Hur, Elisseeff and Guyon (2002); we compare by the adjusted Rand index, which is 0 for chance whatever the number.
    """
    from sklearn.metrics import adjusted_rand_score

    rng = np.random.default_rng(config.seed)
    if len(points) > STABILITY_CELLS:
        points = points[np.sort(rng.choice(len(points), STABILITY_CELLS, replace=False))]
    n = len(points)
    pairs = [[np.sort(rng.choice(n, int(0.8 * n), replace=False)) for _ in range(2)] for _ in range(config.n_resamplings)]
    found: dict[int, tuple[float, float]] = {}
    for n_clusters in range(config.least, min(config.most, n // 4) + 1):
        agreements = []
        for number, pair in enumerate(pairs):
            labels = np.full((2, n), -1)
            for side, rows in enumerate(pair):
                labels[side, rows] = METHODS[config.method](points[rows], n_clusters, config.seed + 2 * number + side)
            both = (labels >= 0).all(axis=0)
            agreements.append(adjusted_rand_score(labels[0, both], labels[1, both]))
        found[n_clusters] = (float(np.mean(agreements)), float(np.std(agreements, ddof=1) / len(agreements) ** 0.5))
    if not found:
        raise DataError(f"slices: found {n} cells; expected at least {4 * config.least} to tell a number of clusters. Give --n-clusters.")
    return found


def most_stable(stability: dict[int, tuple[float, float]]) -> int:
    """Return the largest number whose agreement is within a standard error of the best (few coarse clusters nearly always agree)."""
    best, error = max(stability.values())
    return max(number for number, (mean, _) in stability.items() if mean >= best - max(error, 1e-9))


def _k_means(points: FloatArray, n_clusters: int, seed: int) -> IntArray:
    from sklearn.cluster import KMeans

    return KMeans(n_clusters, n_init=K_MEANS_STARTS, random_state=seed).fit_predict(points)


def _gaussian_mixture(points: FloatArray, n_clusters: int, seed: int) -> IntArray:
    """Gaussians of one shared shape, as mclust's EEE that clusterings of tissue mostly use."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last step is taken
        return GaussianMixture(n_clusters, covariance_type="tied", reg_covar=1e-5, random_state=seed).fit_predict(points.astype(np.float64))


def _leiden(points: FloatArray, n_clusters: int, seed: int) -> IntArray:
    """Leiden on the graph of nearest neighbours at the resolution that gives the number of clusters, or the nearest to it that was seen."""
    graph = neighbor_graph(points)
    low, high = np.log(RESOLUTIONS)
    best: IntArray | None = None
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        labels = leiden(graph, float(np.exp(middle)), seed)
        found = int(labels.max()) + 1
        if best is None or abs(found - n_clusters) < abs(int(best.max()) + 1 - n_clusters):
            best = labels
        if found == n_clusters:
            break
        low, high = (middle, high) if found < n_clusters else (low, middle)
    assert best is not None
    return best


def neighbor_graph(points: FloatArray) -> csr_matrix:
    """Graph of 15 nearest neighbours (faiss, exact), (n, n) CSR: an edge weighs the share of neighbours that two cells have in common."""
    import faiss

    k = min(N_NEIGHBORS + 1, len(points))
    index = faiss.IndexFlatL2(points.shape[1])
    index.add(points)
    _, nearest = index.search(points, k)
    of_cell = csr_matrix((np.ones(nearest.size, np.float32), (np.repeat(np.arange(len(points)), k), nearest.ravel())), shape=(len(points),) * 2)
    is_edge = (of_cell + of_cell.T).sign()
    common = is_edge.multiply(of_cell @ of_cell.T).tocsr()
    common.data = common.data / (2 * k - common.data)  # Jaccard
    common.setdiag(0)
    common.eliminate_zeros()
    return common


def leiden(graph: csr_matrix, resolution: float, seed: int) -> IntArray:
    """Leiden clusters by modularity (igraph), (n,) int64 from 0."""
    import random

    import igraph

    upper = graph.tocoo()
    is_once = upper.row < upper.col
    edges = igraph.Graph(n=graph.shape[0], edges=np.stack([upper.row[is_once], upper.col[is_once]], axis=1))
    igraph.set_random_number_generator(random.Random(seed))
    try:
        parts = edges.community_leiden(objective_function="modularity", weights=upper.data[is_once], resolution=resolution, n_iterations=2)
    finally:
        igraph.set_random_number_generator(random)
    return np.asarray(parts.membership, np.int64)


METHODS: dict[str, Callable[[FloatArray, int, int], IntArray]] = {"leiden": _leiden, "kmeans": _k_means, "gmm": _gaussian_mixture}


def _names_by_size(labels: IntArray) -> StrArray:
    """Name clusters, (n,), "cluster 1" the largest; of equal sizes the one whose cell comes first."""
    values, first, inverse, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(values), np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(1, len(values) + 1)
    return np.array([f"cluster {number}" for number in rank])[inverse]


def score_clusters(true: StrArray, found: StrArray) -> dict[str, float]:
    """Adjusted Rand index and normalised mutual information on cells that have both labels; NaN where there are none."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    both = (true != "") & (found != "")
    if not both.any():
        return {"ari": float("nan"), "nmi": float("nan")}
    pair = true[both], found[both]
    return {"ari": float(adjusted_rand_score(*pair)), "nmi": float(normalized_mutual_info_score(*pair))}
