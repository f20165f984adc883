"""Whether a head hears more of what is smooth over the tissue or of what differs between neighbours: held-out tissue is asked.

A probe divides every feature by its spread. With a locality it also multiplies it by a power of its *local share*, the share of its variance
that lies within blocks of tissue: below 0, smooth features count more, as regions may want it; above 0, those in which neighbours differ, as
cell types may.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import default_rng
from scipy.sparse import csr_array
from scipy.special import softmax

from corpus.slice import FloatArray, IntArray
from downstream.calibration import fit_temperature
from downstream.linear_probe import fit_linear

N_FOLDS, MOST_CELLS = 5, 5000  # of the fits that choose
LEAST_SHARE, LEAST_VARIANCE = 1e-3, 1e-12


def local_share(centred: FloatArray, blocks: IntArray) -> FloatArray:
    """Return the share of each feature's variance that lies within the blocks of a slice, (F,) in (0, 1]; 1 for what does not vary.

    Parameters
    ----------
    centred : (n, F)
        Features less their mean over the slice; rows of NaN do not count.
    blocks : (n,) int
        Block of tissue of each cell.
    """
    is_known = np.isfinite(centred).all(axis=1)
    known = centred[is_known].astype(np.float64)
    _, block, sizes = np.unique(blocks[is_known], return_inverse=True, return_counts=True)
    sums = sums_of_groups(known, block, len(sizes))
    squares = np.einsum("nf,nf->f", known, known)
    total = squares - sums.sum(axis=0) ** 2 / max(1, len(known))
    within = (squares - (sums**2 / sizes[:, None]).sum(axis=0)) * len(known) / max(1, len(known) - len(sizes))
    varies = total > LEAST_VARIANCE * len(known)
    return np.where(varies, np.clip(within / np.where(varies, total, 1), LEAST_SHARE, 1), 1)


def sums_of_groups(x: FloatArray, group: IntArray, n_groups: int) -> FloatArray:
    """Return the sums of the rows of (n, F) by group, (n,) int below `n_groups`: (n_groups, F) float64."""
    return csr_array((np.ones(len(group)), group, np.arange(len(group) + 1)), shape=(len(group), n_groups)).T @ x


def feature_scale(x: FloatArray, share: FloatArray, locality: float) -> FloatArray:
    """Return what to divide features (n, F) by, (F,) float32: their spread over a power of their local shares, whose mean square is one."""
    weight = share**locality
    return (np.maximum(x.std(axis=0), 1e-6) / (weight / np.sqrt(np.mean(weight**2)))).astype(np.float32)


def choose_locality(
    x: FloatArray, y: IntArray, groups: IntArray, share: FloatArray, localities: Sequence[float], *, l2: float, balanced: bool, seed: int
) -> float:
    """Return the locality of which linear fits say most about groups that they did not see.

    They are compared by the mean logarithm of a held-out cell's true class, at the best temperature and with classes weighed alike; a
    sample of the cells does.

    Parameters
    ----------
    x : (n, F) float, centred
    y : (n,) int, of the classes 0 to C - 1
    groups : (n,) int
        What lies together (blocks of tissue, or slices) and is held out together. If there are fewer than two, the first locality is returned.
    """
    names, group = np.unique(groups, return_inverse=True)
    if len(localities) < 2 or len(names) < 2:
        return localities[0]
    draws = default_rng(seed)
    fold = (draws.permutation(len(names)) % min(N_FOLDS, len(names)))[group]
    sample = np.sort(draws.permutation(len(x))[:MOST_CELLS])
    x, y, fold = x[sample], y[sample], fold[sample]
    sizes = np.bincount(y)
    weights = 1 / sizes[y]
    costs = []
    for locality in localities:
        proba = np.full((len(x), len(sizes)), 1 / len(sizes))
        for held in range(fold.max() + 1):
            learned = fold != held
            classes, known = np.unique(y[learned], return_inverse=True)
            if len(classes) < 2 or learned.all():
                continue
            scale = feature_scale(x[learned], share, locality)
            ((matrix, bias),) = fit_linear(x[learned] / scale, known, l2=l2, balanced=balanced)
            proba[~learned] = 0
            proba[np.ix_(~learned, classes)] = softmax((x[~learned] / scale) @ matrix + bias, axis=1)
        costs.append(fit_temperature(proba, y, weights)[1])
    return localities[int(np.argmin(costs))]
