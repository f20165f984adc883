"""Seams are what borders do, and nothing that the tissue does."""

from __future__ import annotations

import numpy as np
import pytest

from downstream.seams import cosine_difference, label_difference, measure_seams, neighbor_pairs

SIDE = 20
PLACES = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1).reshape(-1, 2) * 10.0
COLUMN = PLACES[:, 0].astype(int) // 10
HERE, THERE = (COLUMN >= 10).astype(int), (COLUMN >= 6).astype(int)  # sub-slices of two tilings


def vectors(coloured_by: np.ndarray, *, depth: float, seed: int = 0) -> np.ndarray:
    """Noise, a gradient of the tissue, and what each sub-slice adds to all its cells."""
    noise = 0.1 * np.random.default_rng(seed).normal(size=(len(PLACES), 8))
    return noise + np.array([3.0, 0, 0, 0, 0, 0, 0, 0]) + COLUMN[:, None] * 0.02 + depth * coloured_by[:, None] * np.eye(8)[1]


def test_a_tiling_that_leaves_no_trace_has_no_seams():
    seen = vectors(HERE, depth=0.0)
    seams = measure_seams(PLACES, (HERE, cosine_difference(seen)), (THERE, cosine_difference(seen)))
    assert seams.n_pairs > 2 * SIDE
    assert seams.score == pytest.approx(0, abs=1e-12)


def test_deeper_seams_score_higher():
    scores = [
        measure_seams(PLACES, *((part, cosine_difference(vectors(part, depth=depth))) for part in (HERE, THERE))).score for depth in (0.2, 0.5, 1)
    ]
    assert 0.1 < scores[0] < scores[1] < scores[2]


def test_a_border_of_the_tissue_is_no_seam():
    labels = np.where(COLUMN >= 10, "cortex", "white matter")
    assert measure_seams(PLACES, (HERE, label_difference(labels)), (THERE, label_difference(labels))).score == 0


def test_cells_that_one_tiling_did_not_read_do_not_count():
    read = np.where(PLACES[:, 1] < 50, THERE, -1)
    seams = measure_seams(PLACES, (HERE, cosine_difference(vectors(HERE, depth=1))), (read, cosine_difference(vectors(THERE, depth=1))))
    assert 0 < seams.n_pairs < 40
    assert np.isnan(measure_seams(PLACES, (HERE, label_difference(HERE)), (np.full(SIDE**2, -1), label_difference(HERE))).score)


def test_every_pair_of_neighbours_is_there_once():
    one, other = neighbor_pairs(PLACES)
    assert (one < other).all()
    assert len(np.unique(np.column_stack([one, other]), axis=0)) == len(one)
    assert np.bincount(np.append(one, other)).min() >= 6
