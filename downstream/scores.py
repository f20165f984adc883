"""Scores of predicted against true labels; cells without a true label do not count."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from corpus.slice import FloatArray, StrArray
from downstream.calibration import expected_calibration_error


@dataclass(frozen=True, eq=False)
class LabelScores:
    """How well labels were predicted.

    Attributes
    ----------
    macro_f1, balanced_accuracy : float
        Mean F1 and mean recall over the classes that occur among the true labels.
    accuracy, ari, nmi : float
        Share of cells predicted right; adjusted Rand index and normalised mutual information of the two ways to part the cells.
    ece : float
        Expected calibration error; NaN without probabilities.
    per_class : DataFrame
        Rows classes; columns precision, recall, f1, n_cells.
    """

    macro_f1: float
    accuracy: float
    balanced_accuracy: float
    ari: float
    nmi: float
    ece: float
    per_class: pd.DataFrame

    def numbers(self) -> dict[str, float]:
        """All scores but those per class, by name."""
        return {name: value for name, value in asdict(self).items() if name != "per_class"}


def score_labels(true: StrArray, predicted: StrArray, confidence: FloatArray | None = None) -> LabelScores:
    """Score (n,) predicted labels; an empty prediction (a cell that was not embedded) counts as wrong.

    Parameters
    ----------
    confidence : (n,) float, optional
        Probability of the predicted label; NaN counts as 0.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, precision_recall_fscore_support

    is_labelled = true != ""
    true, predicted = true[is_labelled], predicted[is_labelled]
    classes = np.unique(true)
    precision, recall, f1, n_cells = precision_recall_fscore_support(true, predicted, labels=classes, zero_division=0)
    per_class = pd.DataFrame({"precision": precision, "recall": recall, "f1": f1, "n_cells": n_cells}, index=pd.Index(classes, name="class"))
    ece = float("nan") if confidence is None else expected_calibration_error(np.nan_to_num(confidence[is_labelled]), true == predicted)
    return LabelScores(
        macro_f1=float(np.mean(f1)),
        accuracy=float(np.mean(true == predicted)),
        balanced_accuracy=float(np.mean(recall)),
        ari=float(adjusted_rand_score(true, predicted)),
        nmi=float(normalized_mutual_info_score(true, predicted)),
        ece=ece,
        per_class=per_class,
    )


def pearson_of_columns(true: FloatArray, predicted: FloatArray) -> FloatArray:
    """Pearson correlation of each column, (C,): 0 where the prediction is constant, NaN where the truth is."""
    a, b = true - true.mean(axis=0), predicted - predicted.mean(axis=0)
    spread = np.sqrt((a**2).sum(axis=0)), np.sqrt((b**2).sum(axis=0))
    product = np.where(spread[1] > 1e-9, spread[0] * np.maximum(spread[1], 1e-12), np.inf)
    return np.where(spread[0] > 1e-9, (a * b).sum(axis=0) / np.maximum(product, 1e-30), np.nan)
