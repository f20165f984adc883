"""Plain ways to take spots apart, and the scores of shares: what a deconvolution must be compared with."""

from __future__ import annotations

import numpy as np

from corpus.slice import FloatArray, StrArray
from downstream.profiles import Profiles, log_expression
from downstream.pseudo_spots import PseudoSpots
from downstream.scores import pearson_of_columns


def nnls_shares(reference: Profiles, types: StrArray, spots: Profiles) -> FloatArray:
    """Baseline: non-negative least squares of a spot's counts on the mean counts of each type, scaled to sum to 1; (n, C) float64."""
    from scipy.optimize import nnls

    signature = np.stack([np.asarray(reference.counts[reference.labels == one].mean(axis=0)).ravel() for one in types.tolist()], axis=1)
    weights = np.stack([nnls(signature, spot)[0] for spot in spots.counts.toarray().astype(np.float64)])
    return weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)


def regression_shares(training: PseudoSpots, spots: Profiles) -> FloatArray:
    """Baseline: ridge regression of the shares of pseudo-spots on log expression, clipped to the simplex; (n, C) float64."""
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=10.0).fit(log_expression(training.profiles.counts).toarray(), training.proportions)
    shares = np.clip(model.predict(log_expression(spots.counts).toarray()), 0, None)
    return shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-12)


def score_shares(true: FloatArray, predicted: FloatArray) -> dict[str, float]:
    """Score shares, (n, C): RMSE, Jensen-Shannon divergence (bits, mean over spots), Pearson correlation (mean over types); NaN rows do not count."""
    from scipy.spatial.distance import jensenshannon

    is_known = np.isfinite(predicted).all(axis=1) & np.isfinite(true).all(axis=1)
    true, predicted = true[is_known], predicted[is_known]
    return {
        "rmse": float(np.sqrt(((true - predicted) ** 2).mean())),
        "jsd": float(np.mean(jensenshannon(true, predicted, base=2, axis=1) ** 2)),
        "pearson": float(np.nanmean(pearson_of_columns(true, predicted))),
    }
