"""What a fit says of cells that it did not see: the ground of calibration, prediction sets and out-of-distribution scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import default_rng

from corpus.slice import BoolArray, FloatArray, IntArray, StrArray
from downstream.calibration import Calibration, calibrate
from downstream.novelty import Novelty, distance_quantiles, fit_novelty
from downstream.probes import Probe, fit_probe

Example = tuple[FloatArray, StrArray]  # features (n, F) and labels (n,) of one slice, "" where there is none


def folds_of_groups(groups: Sequence[IntArray], n_folds: int, *, seed: int) -> list[list[BoolArray]]:
    """Deal groups, (n,) of every slice and numbered over all, to folds; for each fold, which cells of each slice are in it.

    No fold at all where there are fewer than two of them, or of groups.
    """
    names = np.unique(np.concatenate(list(groups)))
    n_folds = min(n_folds, len(names))
    if n_folds < 2:
        return []
    fold_of = default_rng(seed).permutation(len(names)) % n_folds
    return [[fold_of[np.searchsorted(names, of_slice)] == k for of_slice in groups] for k in range(n_folds)]


def judge_by_held_out(
    probe: Probe, examples: Sequence[Example], blocks: Sequence[IntArray], folds: Sequence[Sequence[BoolArray]]
) -> tuple[Calibration | None, Novelty | None]:
    """Fit again without every fold in turn, and learn from the cells left out.

    Parameters
    ----------
    probe : fitted on all of `examples`, which it goes on to serve: its fits on parts are a little less sure
    blocks : of (n,) int
        As `fit_probe` was given them.
    folds : from `folds_of_groups`

    Returns
    -------
    None and None where no fold holds a labelled cell and leaves two classes to learn.
    """
    judged = [found for is_held in folds if (found := _judge(probe, examples, blocks, is_held)) is not None]
    if not sum(len(one[1]) for one in judged):
        return None, None
    proba, true, distances = (np.concatenate([one[0] for one in judged]), np.concatenate([one[1] for one in judged]),
                              np.concatenate([one[2] for one in judged]))  # fmt: skip
    x, y = _labelled(probe, examples, probe.classes)
    return calibrate(proba, true), fit_novelty(x, y, len(probe.classes), quantiles=distance_quantiles(distances))


def _judge(
    probe: Probe, examples: Sequence[Example], blocks: Sequence[IntArray], is_held: Sequence[BoolArray]
) -> tuple[FloatArray, IntArray, FloatArray] | None:
    """Fit without these cells; returns their probabilities (m, C), their classes (m,) and their distances (m,) from what was learned."""
    learned = [(features, np.where(held, "", labels)) for (features, labels), held in zip(examples, is_held, strict=True)]
    if len(np.unique(np.concatenate([labels for _, labels in learned]))) < 3:  # "" and one class
        return None
    part = fit_probe(learned, probe.config, blocks)
    novelty = fit_novelty(*_labelled(part, learned, part.classes), len(part.classes), quantiles=np.zeros(0))  # its distances are what is asked for
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
