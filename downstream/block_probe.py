"""How well labels can be read off a model's representations inside one slice: fitted outside of a held-out block, scored in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from corpus.slice import BoolArray, Slice
from downstream.embedding import Embedder, SliceEmbedding, embed_slice
from downstream.heads import most_probable
from downstream.probes import ProbeConfig, fit_probe
from downstream.scores import score_labels
from stofm.errors import located

TASKS = ("region", "cell_type")


def block_probes(slices: Sequence[tuple[Slice, BoolArray]], embedder: Embedder) -> dict[str, dict[str, float]]:
    """Return {task: {features: macro-F1, a mean over slices}} for the labels that the slices have.

    One linear probe per task learns from all slices at once, outside of their blocks. A slice whose block holds no label of a task,
    or one alone, does not count for it; a task without two classes to learn is left out.

    Parameters
    ----------
    slices : (slice, (n_cells,) bool, True in the held-out block)
    """
    embedded = []
    for one, _ in slices:
        with located(f"slice {one.slice_id!r}"):
            embedded.append(embed_slice(one, embedder))
    scores: dict[str, dict[str, float]] = {}
    for task in TASKS:
        labelled = [(one.labels[task], is_out, found) for (one, is_out), found in zip(slices, embedded, strict=True) if task in one.labels]
        counted = [entry for entry in labelled if len(set(entry[0][entry[1]]) - {""}) > 1]
        classes = {label for labels, is_out, _ in labelled for label in labels[~is_out].tolist()} - {""}
        if counted and len(classes) > 1:
            scores[task] = {name: _score(labelled, counted, name) for name in ("cell_embeddings", "cell_repr")}
    return scores


Labelled = tuple[np.ndarray, BoolArray, SliceEmbedding]


def _score(labelled: Sequence[Labelled], counted: Sequence[Labelled], features: str) -> float:
    probe = fit_probe([(getattr(found, features), np.where(is_out, "", labels)) for labels, is_out, found in labelled], ProbeConfig())
    f1 = []
    for labels, is_out, found in counted:
        predicted = most_probable(probe.classes, probe.predict_proba(getattr(found, features)))
        f1.append(score_labels(labels[is_out], predicted[is_out]).macro_f1)
    return float(np.mean(f1))
