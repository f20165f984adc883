"""Heads for regions and cell types: fitted on labelled, embedded slices; predictions with probabilities go into `obs`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from corpus.readers.table import find_labels
from corpus.slice import StrArray
from downstream.embedding import require_embedded
from downstream.probes import Probe, ProbeConfig, fit_probe, load_probe, save_probe
from downstream.scores import LabelScores, score_labels
from stofm.durable import claim_folder, require_folder
from stofm.errors import DataError, located
from stofm.fields import UNS_STOFM

if TYPE_CHECKING:
    from anndata import AnnData

HEAD_KIND = "stofm-head/1"
HEAD_FILE = "head.safetensors"

Task = Literal["region", "cell_type"]
COMMAND: dict[Task, str] = {"region": "segment", "cell_type": "annotate"}


@dataclass(frozen=True, eq=False)
class Head:
    """A probe, the task it was fitted for, the obs column it learned from, and the model whose embeddings it reads."""

    task: Task
    label: str
    weights_sha256: str
    probe: Probe


def fit_head(slices: dict[str, AnnData], task: Task, *, label: str, config: ProbeConfig) -> Head:
    """Fit a head to embedded slices by name; `DataError` if one is not embedded, or by another model, or has no such label."""
    weights: str | None = None
    examples = []
    for name, table in slices.items():
        features = require_embedded(table, name, weights_sha256=weights)
        weights = str(table.uns[UNS_STOFM]["weights_sha256"])
        with located(f"slice {name!r}"):
            examples.append((features, find_labels(table, {task: label})[task]))
    assert weights is not None, "the command line takes one slice or more"
    return Head(task, label, weights, fit_probe(examples, config))


def predict_head(head: Head, table: AnnData, name: str) -> tuple[StrArray, LabelScores | None]:
    """Predict the labels of an embedded slice and write them into its `obs`.

    Adds ``obs["stofm_<task>"]`` (categorical; missing where the cell was not embedded), its probability
    ``obs["stofm_<task>_probability"]`` and that of every class, ``obs["stofm_<task>_probability_<class>"]``, float32.

    Returns
    -------
    (n_cells,) str, the predicted labels, "" where there is none ; scores, where `table` has the true ones
    """
    import pandas as pd

    features = require_embedded(table, name, weights_sha256=head.weights_sha256)
    proba = head.probe.predict_proba(features)
    predicted = most_probable(head.probe.classes, proba)
    column = f"stofm_{head.task}"
    new = {column: pd.Categorical([label or None for label in predicted.tolist()], categories=head.probe.classes.tolist()),
           f"{column}_probability": proba.max(axis=1)}  # fmt: skip
    new |= {f"{column}_probability_{label.replace('/', '_')}": proba[:, number] for number, label in enumerate(head.probe.classes)}
    table.obs = pd.concat([table.obs.drop(columns=[name for name in new if name in table.obs]), pd.DataFrame(new, index=table.obs.index)], axis=1)
    table.uns[f"{UNS_STOFM}_{head.task}"] = {"weights_sha256": head.weights_sha256, "label": head.label, "probe": head.probe.config.model_dump_json()}
    true = find_labels(table, {head.task: head.label})[head.task] if head.label in table.obs else None
    return predicted, score_labels(true, predicted) if true is not None and (true != "").any() else None


def most_probable(classes: StrArray, proba: np.ndarray) -> StrArray:
    """Return the class of highest probability per row, "" for rows of NaN."""
    is_known = np.isfinite(proba).all(axis=1)
    return np.where(is_known, classes[np.where(is_known[:, None], proba, 0).argmax(axis=1)], "")


def save_head(folder: Path, head: Head) -> None:
    """Write a head to a folder of its own."""
    claim_folder(folder, HEAD_KIND)
    save_probe(folder / HEAD_FILE, head.probe, {"task": head.task, "label": head.label, "weights_sha256": head.weights_sha256})


def load_head(folder: Path, task: Task) -> Head:
    """Read a head; `DataError` if it was fitted for another task."""
    require_folder(folder, HEAD_KIND, made_by=f"stofm {COMMAND[task]} fit")
    probe, meta = load_probe(folder / HEAD_FILE)
    if meta["task"] != task:
        raise DataError(f"head {folder}: found a head for {meta['task']!r}; expected one for {task!r}. Fit it with `stofm {COMMAND[task]} fit`.")
    return Head(task, meta["label"], meta["weights_sha256"], probe)
