"""Probabilities that mean what they say, and sets of labels that hold the true one as often as was asked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from corpus.slice import BoolArray, FloatArray, IntArray

N_BINS = 15
N_QUANTILES = 1001
FLOOR = 1e-6  # the least probability of a class, so that its logarithm is a number


def expected_calibration_error(confidence: FloatArray, is_right: BoolArray) -> float:
    """Return the mean distance between confidence and accuracy, over 15 bins of equal width weighted by their cells.

    Parameters
    ----------
    confidence : (n,) float in [0, 1]
    is_right : (n,) bool

    Notes
    -----
    Source: Guo et al., On calibration of modern neural networks, 2017.
    """
    bins = np.minimum((confidence * N_BINS).astype(int), N_BINS - 1)
    gaps = np.bincount(bins, weights=confidence, minlength=N_BINS) - np.bincount(bins, weights=is_right, minlength=N_BINS)
    return float(np.abs(gaps).sum() / max(1, len(confidence)))


@dataclass(frozen=True, eq=False)
class Calibration:
    """What cells that were held out of a fit say about its probabilities.

    Attributes
    ----------
    temperature : float
        Logarithms of probabilities are divided by it; above 1 where the fit was too sure.
    quantiles : (Q,) float64, increasing
        Of 1 less the probability (at this temperature) of the true class.
    n_cells : int
        Held-out cells.
    """

    temperature: float
    quantiles: FloatArray
    n_cells: int

    def apply(self, proba: FloatArray) -> FloatArray:
        """Return (n, C) float32 probabilities at the temperature; NaN rows stay."""
        return at_temperature(proba, self.temperature)

    def sets(self, proba: FloatArray, *, coverage: float) -> BoolArray:
        """Tell which labels belong to the prediction set of each cell, (n, C); the most probable one always does.

        For cells like those held out, the set holds the true label with probability `coverage` at least; cells of another donor or
        chemistry are not like them, and coverage there is measured, not promised.

        Parameters
        ----------
        proba : (n, C), from `apply`

        Notes
        -----
        Source: Sadinle, Lei and Wasserman, Least ambiguous set-valued classifiers, 2019. The level is raised to
        ceil((n + 1) coverage) / n for the finite number of held-out cells.
        """
        level = np.ceil((self.n_cells + 1) * coverage) / self.n_cells
        threshold = self.quantiles[int(np.ceil(level * (N_QUANTILES - 1)))] if level <= 1 else np.inf
        is_known = np.isfinite(proba).all(axis=1)
        is_in = np.zeros(proba.shape, dtype=bool)
        known = proba[is_known]
        chosen = 1 - known <= threshold
        chosen[np.arange(len(known)), known.argmax(axis=1)] = True
        is_in[is_known] = chosen
        return is_in


def calibrate(proba: FloatArray, true: IntArray) -> Calibration:
    """Learn from held-out cells.

    Parameters
    ----------
    proba : (n, C) float, rows add up to 1
    true : (n,) int
        Class of each cell.
    """
    temperature, _ = fit_temperature(proba, true)
    nonconformity = 1 - at_temperature(proba, temperature)[np.arange(len(true)), true].astype(np.float64)
    return Calibration(temperature, np.quantile(nonconformity, np.linspace(0, 1, N_QUANTILES), method="higher"), len(true))


def fit_temperature(proba: FloatArray, true: IntArray, weights: FloatArray | None = None) -> tuple[float, float]:
    """Return the temperature at which probabilities (n, C) say most about the true classes (n,), and what they fail to say there.

    The latter is the mean negative logarithm of the true class, over cells weighed by `weights`, (n,).
    """
    from scipy.optimize import minimize_scalar

    cells = np.arange(len(true))

    def cost(log_temperature: float) -> float:
        return -float(np.average(np.log(np.maximum(at_temperature(proba, np.exp(log_temperature))[cells, true], FLOOR)), weights=weights))

    found = minimize_scalar(cost, bounds=(-3.0, 3.0), method="bounded")
    return float(np.exp(found.x)), float(found.fun)


def at_temperature(proba: FloatArray, temperature: float) -> FloatArray:
    """Divide the logarithms of probabilities by a temperature and bring rows back to a sum of 1, (n, C) float32."""
    scaled: FloatArray = softmax(np.log(np.maximum(proba, FLOOR)) / temperature, axis=1)  # NaN rows stay NaN
    return scaled.astype(np.float32)
