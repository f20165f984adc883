"""What a labelled tissue says beside its map: composition, who lies next to whom, which classes are mistaken, whether probabilities hold."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd

from corpus.slice import FloatArray, StrArray
from downstream.calibration import N_BINS, expected_calibration_error
from stofm.compiled import keep_umap_compiled

N_NEIGHBORS = 6


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often predictions made with a certain confidence are right.

    Attributes
    ----------
    bins : DataFrame
        A row per occupied bin of confidence; columns confidence (mean), accuracy, n_cells.
    error : float
        Expected calibration error, as in `downstream.calibration`.
    """

    bins: pd.DataFrame
    error: float


def composition(groups: StrArray, parts: StrArray) -> pd.DataFrame:
    """Return the share of each of `parts`, (n,) str, in each of `groups`, (n,) str; rows add up to 1, "" in either does not count."""
    is_known = (groups != "") & (parts != "")
    return pd.crosstab(groups[is_known], parts[is_known], rownames=[None], colnames=[None], normalize="index")


def confusion(true: StrArray, predicted: StrArray) -> pd.DataFrame:
    """Return cells by true (rows) and predicted class (columns), each (n,) str; cells without a true label do not count."""
    is_labelled = true != ""
    predicted = np.where(predicted == "", "(none)", predicted)
    table = pd.crosstab(true[is_labelled], predicted[is_labelled], rownames=["true"], colnames=["predicted"])
    rest = [name for name in table.columns if name not in table.index]
    return table.reindex(columns=[*table.index, *rest], fill_value=0)


def reliability(true: StrArray, predicted: StrArray, confidence: FloatArray) -> Reliability | None:
    """Compare the confidence, (n,) in 0 to 1, of the predicted class with how often it is the true one; None where no cell has a true label."""
    from sklearn.calibration import calibration_curve

    is_asked = (true != "") & np.isfinite(confidence)
    if not is_asked.any():
        return None
    is_right, confidence = (true == predicted)[is_asked], np.asarray(confidence, np.float64)[is_asked].clip(0, 1)
    accuracy, mean_confidence = calibration_curve(is_right, confidence, n_bins=N_BINS)
    edges = np.linspace(0, 1, N_BINS + 1)
    n_cells = np.bincount(np.searchsorted(edges[1:-1], confidence), minlength=N_BINS)
    bins = pd.DataFrame({"confidence": mean_confidence, "accuracy": accuracy, "n_cells": n_cells[n_cells > 0]})
    return Reliability(bins, expected_calibration_error(confidence, is_right))


def neighbor_enrichment(coords_um: FloatArray, labels: StrArray, *, n_perms: int, seed: int = 0) -> pd.DataFrame:
    """Return how much more often two classes lie side by side than if labels were dealt at random, as z-scores (squidpy).

    Parameters
    ----------
    coords_um : (n, 2) float, micrometres
    labels : (n,) str
        "" does not count.

    Returns
    -------
    (C, C) DataFrame; NaN where shuffling never changes the number of a pair
    """
    import anndata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of docrep, on squidpy's docstrings
        from squidpy.gr import nhood_enrichment, spatial_neighbors_knn

    is_known = labels != ""
    obs = pd.DataFrame({"label": pd.Categorical(labels[is_known])}, index=np.arange(int(is_known.sum())).astype(str))
    table = anndata.AnnData(obs=obs, obsm={"spatial": coords_um[is_known]})
    spatial_neighbors_knn(table, n_neighs=min(N_NEIGHBORS, table.n_obs - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        result = nhood_enrichment(table, cluster_key="label", n_perms=n_perms, seed=seed, copy=True, show_progress_bar=False)
    names = table.obs["label"].cat.categories
    scores = np.where(np.isfinite(result.zscore), result.zscore, np.nan)
    return pd.DataFrame(scores, index=names, columns=names)


def umap_places(features: FloatArray, *, n_cells: int, seed: int = 0) -> tuple[np.ndarray, FloatArray]:
    """Lay out embeddings in the plane by UMAP; of many cells, a sample.

    Parameters
    ----------
    features : (n, D) float
        Rows with NaN are left out.
    n_cells : int
        Most cells to lay out.

    Returns
    -------
    (m,) int64, rows ; (m, 2) float32, their places
    """
    keep_umap_compiled()
    from sklearn.neighbors import NearestNeighbors
    from umap import UMAP

    rows = np.flatnonzero(np.isfinite(features).all(axis=1))
    if len(rows) > n_cells:
        rows = np.sort(np.random.default_rng(seed).choice(rows, n_cells, replace=False))
    points = np.asarray(features[rows], np.float32)
    n_neighbors = min(15, len(rows) - 1)
    # Exact, in seconds; umap's own search compiles for a minute in every process that has more than 4,096 points.
    far, near = NearestNeighbors(n_neighbors=n_neighbors, algorithm="brute").fit(points).kneighbors(points)
    umap = UMAP(n_neighbors=n_neighbors, min_dist=0.5, random_state=seed, precomputed_knn=(near, far), force_approximation_algorithm=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a seed means one thread, and that given neighbours place no further points
        places = umap.fit_transform(points)
    return rows, np.asarray(places, np.float32)


def clusters(features: FloatArray, *, n_clusters: int = 12, seed: int = 0) -> StrArray:
    """Cluster embeddings, (n, D) float, by k-means fitted to a sample; (n,) str, largest cluster first, "" for rows of NaN."""
    from sklearn.cluster import MiniBatchKMeans

    rows = np.flatnonzero(np.isfinite(features).all(axis=1))
    sample = np.random.default_rng(seed).permutation(rows)[:20_000]
    if not len(rows):
        return np.full(len(features), "")
    model = MiniBatchKMeans(min(n_clusters, len(sample)), random_state=seed, n_init=3).fit(features[sample])
    found = np.concatenate([model.predict(features[part]) for part in np.array_split(rows, -(-len(rows) // 65_536))])
    rank = np.argsort(np.argsort(-np.bincount(found, minlength=model.n_clusters), kind="stable"))
    width = len(str(model.n_clusters))
    labels = np.full(len(features), "", dtype=f"<U{width}")
    labels[rows] = [f"{number + 1:0{width}d}" for number in rank[found].tolist()]
    return labels
