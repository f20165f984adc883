"""The linear one among the probes: logistic regression."""

from __future__ import annotations

import numpy as np

from corpus.slice import FloatArray, IntArray


def fit_linear(x: FloatArray, y: IntArray, *, l2: float, balanced: bool) -> list[tuple[FloatArray, FloatArray]]:
    """Fit weights of every class by L-BFGS.

    Parameters
    ----------
    x : (n, F) float32, scaled
    y : (n,) int64, of C classes
    l2 : penalty on the weights beside the mean loss
    balanced : every class weighs the same in the loss

    Returns
    -------
    [(weights (F, C), bias (C,))]
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1 / (l2 * len(x)), max_iter=2000, class_weight="balanced" if balanced else None).fit(x, y)
    weights, bias = model.coef_.T, model.intercept_
    if len(bias) == 1:  # scikit-learn keeps only the score of the second of two classes
        weights, bias = np.hstack([np.zeros_like(weights), weights]), np.concatenate([np.zeros_like(bias), bias])
    return [(weights, bias)]
