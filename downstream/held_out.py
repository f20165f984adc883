"""What a fit says of cells that it did not see: the ground of calibration, prediction sets and out-of-distribution scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import default_rng

from corpus.slice import BoolArray, FloatArray, IntArray, StrArray
from downstream.calibration import Calibration, calibrate
from downstream.novelty import Novelty, distance_quantiles, fit_novelty
from downstream.probes import Probe, ProbeConfig, fit_probe

Example = tuple[FloatArray, StrArray]  # features (n, F) and labels (n,) of one slice, "" where there is none


def judge_by_held_out(
    probe: Probe, examples: Sequence[Example], groups: Sequence[IntArray], config: ProbeConfig, *, n_folds: int
) -> tuple[Calibration | None, Novelty | None]:
    """Fit again without every fold of the groups in turn, and learn from the cells left out.

    Parameters
    ----------
    probe : fitted on all of `examples`, which it goes on to serve: its fits on parts are a little less sure
    groups : of (n,) int
        What lies together (blocks of tissue, or whole slices), numbered over all slices.

    Returns
    -------
    None and None where there is but one group, or no fold leaves two classes to learn.
    """
    names = np.unique(np.concatenate(list(groups)))
    n_folds = min(n_folds, len(names))
    if n_folds < 2:
        return None, None
    fold_of = dict(zip(names.tolist(), (default_rng(config.seed).permutation(len(names)) % n_folds).tolist(), strict=True))
    folds = [np.array([fold_of[name] for name in of_slice.tolist()]) for of_slice in groups]
    judged = [_judge(probe, examples, groups, [fold == k for fold in folds], config) for k in range(n_folds)]
    proba, true, distances = (np.concatenate([one[part] for one in judged if one is not None]) for part in range(3)) if any(judged) else ([],) * 3
    if not len(true):
        return None, None
    x, y = _labelled(probe, examples, probe.classes)
    return calibrate(proba, true), fit_novelty(x, y, len(probe.classes), quantiles=distance_quantiles(distances))


def _judge(
    probe: Probe, examples: Sequence[Example], groups: Sequence[IntArray], is_held: Sequence[BoolArray], config: ProbeConfig
) -> tuple[FloatArray, IntArray, FloatArray] | None:
    """Fit without these cells; returns their probabilities (m, C), their classes (m,) and their distances (m,) from what was learned."""
    learned = [(features, np.where(held, "", labels)) for (features, labels), held in zip(examples, is_held, strict=True)]
    if len(np.unique(np.concatenate([labels for _, labels in learned]))) < 3:  # "" and one class
        return None
    part = fit_probe(learned, config, list(groups))
    novelty = fit_novelty(*_labelled(part, learned, part.classes), len(part.classes))
    columns = np.searchsorted(probe.classes, part.classes)
    found: list[tuple[FloatArray, IntArray, FloatArray]] = []
    for (features, labels), held in zip(examples, is_held, strict=True):
        rows = held & (labels != "") & np.isfinite(features).all(axis=1)
        proba = np.zeros((int(rows.sum()), len(probe.classes)))
        proba[:, columns] = part.predict_proba(features)[rows]
        found.append((proba, np.searchsorted(probe.classes, labels[rows]), novelty.distance(part.scaled(features)[rows])))
    proba, true, distances = (np.concatenate([one[number] for one in found]) for number in range(3))
    return proba, true, distances


def _labelled(probe: Probe, examples: Sequence[Example], classes: StrArray) -> tuple[FloatArray, IntArray]:
    """Return the labelled cells as the probe reads them, (m, F), and their classes, (m,)."""
    x = np.vstack([probe.scaled(features) for features, _ in examples])
    labels = np.concatenate([labels for _, labels in examples])
    rows = (labels != "") & np.isfinite(x).all(axis=1)
    return x[rows], np.searchsorted(classes, labels[rows])
