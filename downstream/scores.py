"""Scores of predicted against true labels; cells without a true label do not count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from corpus.slice import FloatArray, StrArray


@dataclass(frozen=True, eq=False)
class LabelScores:
    """How well labels were predicted.

    Attributes
    ----------
    macro_f1, accuracy : float
        Macro-F1 over the classes that occur among the true labels.
    per_class : DataFrame
        Rows classes; columns precision, recall, f1, n_cells.
    """

    macro_f1: float
    accuracy: float
    per_class: pd.DataFrame


def score_labels(true: StrArray, predicted: StrArray) -> LabelScores:
    """Score (n,) predicted labels; an empty prediction (a cell that was not embedded) counts as wrong."""
    from sklearn.metrics import precision_recall_fscore_support

    is_labelled = true != ""
    true, predicted = true[is_labelled], predicted[is_labelled]
    classes = np.unique(true)
    precision, recall, f1, n_cells = precision_recall_fscore_support(true, predicted, labels=classes, zero_division=0)
    per_class = pd.DataFrame({"precision": precision, "recall": recall, "f1": f1, "n_cells": n_cells}, index=pd.Index(classes, name="class"))
    return LabelScores(float(np.mean(f1)), float(np.mean(true == predicted)), per_class)


def pearson_of_columns(true: FloatArray, predicted: FloatArray) -> FloatArray:
    """Pearson correlation of each column, (C,): 0 where the prediction is constant, NaN where the truth is."""
    a, b = true - true.mean(axis=0), predicted - predicted.mean(axis=0)
    spread = np.sqrt((a**2).sum(axis=0)), np.sqrt((b**2).sum(axis=0))
    product = np.where(spread[1] > 1e-9, spread[0] * np.maximum(spread[1], 1e-12), np.inf)
    return np.where(spread[0] > 1e-9, (a * b).sum(axis=0) / product, np.nan)
