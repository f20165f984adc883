"""Intervals of macro-F1: they hold the score of the cells, vanish for perfect rows, and pair what is compared."""

from __future__ import annotations

import numpy as np
import pytest

from downstream.bootstrap import block_confusions, drawn_scores
from downstream.scores import score_labels


def labels(n: int, n_wrong: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.choice(["a", "b", "c"], n)
    predicted = true.copy()
    predicted[rng.permutation(n)[:n_wrong]] = "d"
    return true, predicted, np.arange(n) * 20 // n


def test_summed_confusions_count_every_labelled_cell():
    true, predicted, blocks = labels(200, 30)
    true[:10] = ""
    table = block_confusions(true, predicted, blocks)
    assert table.shape == (20, 3, 4)
    assert table.sum() == 190
    assert table[:, [0, 1, 2], [0, 1, 2]].sum() == ((true == predicted) & (true != "")).sum()


def test_draws_lie_around_the_score():
    true, predicted, blocks = labels(400, 100)
    predicted[:3] = ""
    draws = drawn_scores({"row": [[block_confusions(true, predicted, blocks)]]})["row"]
    score = score_labels(true, predicted).macro_f1
    assert np.percentile(draws, 2.5) < score < np.percentile(draws, 97.5)
    assert draws.mean() == pytest.approx(score, abs=0.01)


def test_a_perfect_row_has_no_spread():
    true, _, blocks = labels(100, 0)
    assert set(drawn_scores({"row": [[block_confusions(true, true, blocks)]]})["row"]) == {1.0}


def test_equal_rows_differ_in_no_draw():
    slices = [[block_confusions(*labels(100, 20 + seed, seed))] for seed in range(3)]
    draws = drawn_scores({"one": slices, "other": slices})
    np.testing.assert_array_equal(draws["one"], draws["other"])


def test_slices_that_differ_widen_the_interval():
    alike = [[block_confusions(*labels(400, 80, seed))] for seed in range(4)]
    unlike = [[block_confusions(*labels(400, n_wrong, seed))] for seed, n_wrong in enumerate((0, 40, 120, 160))]
    narrow, wide = (np.ptp(np.percentile(drawn_scores({"row": of_slices})["row"], [2.5, 97.5])) for of_slices in (alike, unlike))
    assert wide > 2 * narrow
