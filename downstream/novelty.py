"""How far a cell lies from all that a head was fitted on: an out-of-distribution score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from corpus.slice import FloatArray, IntArray
from downstream.locality import sums_of_groups

SHRINKAGE = 0.1
N_QUANTILES = 1001


@dataclass(frozen=True, eq=False)
class Novelty:
    """Classes as Gaussians of one shape.

    Attributes
    ----------
    means : (C, F) float32
    whitener : (F, F) float32
        Brings the spread within classes to a unit matrix.
    quantiles : (Q,) float64, increasing
        Of the distance of held-out cells to the nearest class.
    """

    means: FloatArray
    whitener: FloatArray
    quantiles: FloatArray

    def score(self, x: FloatArray) -> FloatArray:
        """Return the share of held-out cells that lie nearer to their nearest class than each of these, (n,) float32; NaN for NaN rows."""
        distance = self.distance(x)
        share = np.searchsorted(self.quantiles, distance) / len(self.quantiles)
        return np.where(np.isfinite(distance), share, np.nan).astype(np.float32)

    def distance(self, x: FloatArray) -> FloatArray:
        """Return the squared Mahalanobis distance of (n, F) features to the nearest class, (n,) float64."""
        cells, means = (x @ self.whitener).astype(np.float64), (self.means @ self.whitener).astype(np.float64)
        squares = (cells**2).sum(axis=1)[:, None] - 2 * cells @ means.T + (means**2).sum(axis=1)
        return np.maximum(squares.min(axis=1), 0)


def fit_novelty(x: FloatArray, y: IntArray, n_classes: int, *, quantiles: FloatArray | None = None) -> Novelty:
    """Fit class means and their common covariance, shrunk by a tenth towards a multiple of the unit matrix.

    Parameters
    ----------
    x : (n, F) float, centred and scaled as the probe's
    y : (n,) int
    quantiles : of distances of cells that were held out; default: of these cells, which is too narrow

    Notes
    -----
    Source: Lee et al., A simple unified framework for detecting out-of-distribution samples, 2018.
    """
    sizes = np.bincount(y, minlength=n_classes)
    means = sums_of_groups(x, y, n_classes) / np.maximum(sizes, 1)[:, None]
    within = x - means[y]
    covariance = within.T @ within / len(x)
    spread = max(float(np.trace(covariance)) / x.shape[1], 1e-12)
    values, vectors = np.linalg.eigh((1 - SHRINKAGE) * covariance + SHRINKAGE * spread * np.eye(x.shape[1]))
    novelty = Novelty(means[sizes > 0].astype(np.float32), (vectors / np.sqrt(values)).astype(np.float32), np.zeros(0))
    if quantiles is None:
        quantiles = distance_quantiles(novelty.distance(x))
    return Novelty(novelty.means, novelty.whitener, quantiles)


def distance_quantiles(distances: FloatArray) -> FloatArray:
    """Return evenly spaced quantiles of distances, (Q,) float64."""
    return np.quantile(distances, np.linspace(0, 1, N_QUANTILES))
