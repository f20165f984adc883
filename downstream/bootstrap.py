"""Intervals of a mean macro-F1 and of differences between rows of a table, over tissue that was drawn again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.random import default_rng

from corpus.slice import FloatArray, IntArray, StrArray

N_DRAWS = 1000
N_BLOCKS = 25  # pieces of a slice that are drawn; neighbouring cells are alike, so single cells would promise too much
TAILS = (2.5, 97.5)


def block_confusions(true: StrArray, predicted: StrArray, blocks: IntArray) -> IntArray:
    """Count how labels were predicted, block by block.

    Parameters
    ----------
    true, predicted : (n,) str
        Cells without a true label do not count; an empty prediction is a class of its own.
    blocks : (n,) int

    Returns
    -------
    (n_blocks, C, P) int64
        True classes in rows, predicted labels in columns; the first C columns are the true classes in their order.
    """
    is_labelled = true != ""
    classes = np.unique(true[is_labelled])
    others = np.setdiff1d(np.unique(predicted[is_labelled]), classes)
    columns = {name: number for number, name in enumerate([*classes.tolist(), *others.tolist()])}
    table = np.zeros((int(blocks.max()) + 1, len(classes), len(columns)), np.int64)
    at = [columns[name] for name in true[is_labelled].tolist()], [columns[name] for name in predicted[is_labelled].tolist()]
    np.add.at(table, (blocks[is_labelled], *at), 1)
    return table


def drawn_scores(confusions: Mapping[str, Sequence[Sequence[IntArray]]], *, seed: int = 0) -> dict[str, FloatArray]:
    """Return the mean macro-F1 of every row over `N_DRAWS` draws, the same draws for all rows, so that differences are paired.

    Slices are drawn with replacement, where there are several, and blocks of tissue within each of them.

    Parameters
    ----------
    confusions : {row: for every slice, for every seed, (n_blocks, C, P)}

    Returns
    -------
    {row: (N_DRAWS,) float64}
    """
    rng = default_rng(seed)
    first = next(iter(confusions.values()))
    n_slices = len(first)
    slices = rng.integers(n_slices, size=(N_DRAWS, n_slices))
    weights = [rng.multinomial(len(runs[0]), np.full(len(runs[0]), 1 / len(runs[0])), size=N_DRAWS) for runs in first]
    scores = {}
    for row, of_slices in confusions.items():
        f1 = np.stack([np.mean([_macro_f1(weights[number], one) for one in runs], axis=0) for number, runs in enumerate(of_slices)])  # (S, draws)
        scores[row] = f1[slices, np.arange(N_DRAWS)[:, None]].mean(axis=1)
    return scores


def _macro_f1(weights: IntArray, confusions: IntArray) -> FloatArray:
    """Macro-F1 of every draw, (draws,), over the classes that occur in it."""
    n_classes = confusions.shape[1]
    hits = np.einsum("bcc->bc", confusions[:, :, :n_classes])
    true, predicted = confusions.sum(axis=2), confusions[:, :, :n_classes].sum(axis=1)
    hits, true, predicted = (weights @ one for one in (hits, true, predicted))  # each (draws, C)
    is_there = true > 0
    f1 = 2 * hits / np.maximum(true + predicted, 1)
    return (f1 * is_there).sum(axis=1) / np.maximum(is_there.sum(axis=1), 1)
