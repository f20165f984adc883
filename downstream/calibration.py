"""Probabilities that mean what they say."""

from __future__ import annotations

import numpy as np

from corpus.slice import BoolArray, FloatArray

N_BINS = 15


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
