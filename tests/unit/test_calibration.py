"""Calibration: what confidence promises is what happens."""

from __future__ import annotations

import numpy as np
import pytest

from downstream.calibration import expected_calibration_error


def test_confidence_that_is_kept_costs_nothing():
    confidence = np.repeat([0.25, 0.75], 100)
    is_right = np.concatenate([np.arange(100) < 25, np.arange(100) < 75])
    assert expected_calibration_error(confidence, is_right) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("share_right", [0.0, 0.4, 1.0])
def test_certainty_costs_what_goes_wrong(share_right):
    is_right = np.arange(100) < 100 * share_right
    assert expected_calibration_error(np.ones(100), is_right) == pytest.approx(1 - share_right)
