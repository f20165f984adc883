"""A head applied to a slice: labels, probabilities, sets of labels, what lies outside of all that is known, and alarms."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field
from scipy.spatial import cKDTree

from corpus.readers.table import find_coordinates, find_labels
from corpus.slice import FloatArray, StrArray
from downstream.embedding import Embedder
from downstream.heads import Head, head_features, most_probable, spatial_key_of
from downstream.scores import LabelScores, score_labels
from stofm.config import FrozenModel
from stofm.errors import ConfigError
from stofm.fields import UNS_STOFM

if TYPE_CHECKING:
    from anndata import AnnData

COLLAPSED = 0.5  # predictions use at most this share of as many classes as the labels that the head learned from


class PredictConfig(FrozenModel):
    """What becomes of a head's probabilities."""

    coverage: float = Field(0.9, gt=0, lt=1, description="Share of cells whose prediction set is to hold the true label.")
    min_confidence: float = Field(0.0, ge=0, le=1, description="Cells whose label is less probable get none.")
    max_novelty: float = Field(1.0, ge=0, le=1, description="Cells with a higher out-of-distribution score get no label.")
    smooth_neighbors: int = Field(0, ge=0, description="Average probabilities with those of so many nearest cells; 0: no smoothing.")


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a head says of a slice.

    Attributes
    ----------
    labels, raw : (n_cells,) str
        After smoothing and abstention, and before; "" where there is none.
    scores : LabelScores or None
        Of `labels`, where the slice has true ones.
    alarms : list of str
        What makes the predictions suspect, a sentence each.
    """

    labels: StrArray
    raw: StrArray
    scores: LabelScores | None
    alarms: list[str]


def predict_head(head: Head, table: AnnData, name: str, config: PredictConfig | None = None, embedder: Embedder | None = None) -> Prediction:
    """Predict the labels of an embedded slice and write them into its `obs`.

    Adds ``obs["stofm_<task>"]`` (categorical; missing where the cell was not embedded or the head abstains), its probability
    ``obs["stofm_<task>_probability"]`` and that of every class, ``obs["stofm_<task>_probability_<class>"]``, float32. From a calibrated
    head also ``obs["stofm_<task>_set"]`` (labels joined by "|") and ``obs["stofm_<task>_novelty"]`` (float32, 0 to 1, high for cells
    unlike those of the fit); where smoothed or abstained, ``obs["stofm_<task>_raw"]`` keeps the most probable label.

    Raises
    ------
    ConfigError
        If `config` asks an uncalibrated head for what it cannot say.
    DataError
        As `head_features`.
    """
    import pandas as pd

    config = config or PredictConfig()
    if head.novelty is None and config.max_novelty < 1:
        raise ConfigError("head: found no calibration; expected one for an out-of-distribution score. Fit the head again, with more labelled tissue.")
    features = head_features(head, table, name, embedder)
    classes, proba = head.probe.classes, head.probe.predict_proba(features)
    if head.calibration is not None:
        proba = head.calibration.apply(proba)
    labels = raw = most_probable(classes, proba)
    if config.smooth_neighbors:
        proba = smooth(proba, find_coordinates(table, spatial_key_of(table)), config.smooth_neighbors)
        labels = most_probable(classes, proba)
    confidence = proba.max(axis=1)
    labels = np.where(confidence >= config.min_confidence, labels, "")
    column = f"stofm_{head.task}"
    new: dict[str, object] = {}
    if head.novelty is not None:
        novelty = head.novelty.score(head.probe.scaled(features))
        labels = np.where(novelty <= config.max_novelty, labels, "")
        new[f"{column}_novelty"] = novelty
    if head.calibration is not None:
        new[f"{column}_set"] = _joined(classes, head.calibration.sets(proba, coverage=config.coverage))
    if (labels != raw).any() or config.smooth_neighbors:
        new[f"{column}_raw"] = _categories(raw, classes)
    new = {column: _categories(labels, classes), f"{column}_probability": confidence} | new
    new |= {f"{column}_probability_{label.replace('/', '_')}": proba[:, number] for number, label in enumerate(classes)}
    stale = [one for one in (*new, f"{column}_novelty", f"{column}_set", f"{column}_raw") if one in table.obs]
    table.obs = pd.concat([table.obs.drop(columns=list(dict.fromkeys(stale))), pd.DataFrame(new, index=table.obs.index)], axis=1)

    true = find_labels(table, {head.task: head.label})[head.task] if head.label in table.obs else np.full(table.n_obs, "")
    alarms = [*_collapse(raw, head), *_never_seen(true, classes)]
    receipt = {"weights_sha256": head.weights_sha256, "label": head.label, "probe": head.probe.config.model_dump_json()}
    receipt |= {"predict": config.model_dump_json(), "temperature": repr(head.calibration.temperature) if head.calibration else ""}
    table.uns[f"{UNS_STOFM}_{head.task}"] = receipt | {"alarms": json.dumps(alarms)}
    return Prediction(labels, raw, score_labels(true, labels, confidence) if (true != "").any() else None, alarms)


def smooth(proba: FloatArray, coords: FloatArray, n_neighbors: int) -> FloatArray:
    """Average the probabilities of each cell with those of its nearest cells, (n, C); cells without any stay so, and do not count.

    Parameters
    ----------
    proba : (n, C)
    coords : (n, 2), any unit
    """
    is_known = np.isfinite(proba).all(axis=1) & np.isfinite(coords).all(axis=1)
    nearest = cKDTree(coords[is_known]).query(coords[is_known], k=min(n_neighbors + 1, int(is_known.sum())))[1]
    smoothed = proba.copy()
    smoothed[is_known] = proba[is_known][nearest.reshape(int(is_known.sum()), -1)].mean(axis=1)
    return smoothed


def _categories(labels: StrArray, classes: StrArray) -> object:
    import pandas as pd

    return pd.Categorical([label or None for label in labels.tolist()], categories=classes.tolist())


def _joined(classes: StrArray, is_in: np.ndarray) -> list[str]:
    return ["|".join(classes[row].tolist()) for row in is_in]


def _collapse(raw: StrArray, head: Head) -> list[str]:
    """Say so if predictions fall into far fewer classes than the labels of the fit; classes count by the exponential of their entropy."""
    known = raw[raw != ""]
    if not len(known) or not len(head.shares):
        return []
    names, counts = np.unique(known, return_counts=True)
    found, expected = _n_effective(counts / counts.sum()), _n_effective(head.shares)
    if found > COLLAPSED * expected:
        return []
    most = counts.argmax()
    return [f"predictions collapse: {counts[most] / counts.sum():.0%} of the cells are {names[most]!r}, {len(names)} of {len(head.shares)} classes "
            "occur; the slice may be of another tissue or chemistry than those of the fit."]  # fmt: skip


def _n_effective(shares: FloatArray) -> float:
    positive = shares[shares > 0].astype(np.float64)
    return float(np.exp(-(positive * np.log(positive)).sum()))


def _never_seen(true: StrArray, classes: StrArray) -> list[str]:
    unknown = sorted(set(np.unique(true).tolist()) - set(classes.tolist()) - {""})
    return [f"true labels hold classes that the head never saw: {', '.join(unknown)}; they count as missed."] if unknown else []
