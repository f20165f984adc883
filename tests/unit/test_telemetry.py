"""Rates, share of the peak and waiting add up; trackers get numbers under full names."""

from __future__ import annotations

import time

import pytest
import torch

from pretrain.telemetry import Meter, Work, peak_flops
from pretrain.trackers import flat, require_trackers
from stofm.errors import ConfigError


def test_measures_are_those_of_what_was_done_since_the_last_reading():
    meter = Meter(torch.device("cpu"), torch.float32, n_ranks=2)
    for _ in range(2):
        with meter.waiting():
            time.sleep(0.02)
        meter.add(Work(cells=30, sub_slices=3, tokens=300, flops=1e6))
        meter.step()
    found = meter.read(steps_left=10)
    assert found["seconds"] >= 0.02
    assert 0 < found["data_wait_share"] <= 1
    assert found["cells_per_second"] == pytest.approx(2 * 60 / (2 * found["seconds"]))
    assert found["tokens_per_second"] == pytest.approx(10 * found["cells_per_second"])
    assert found["sub_slices_per_second"] == pytest.approx(found["cells_per_second"] / 10)
    assert found["peak_share"] == pytest.approx(1e6 / found["seconds"] / peak_flops(torch.device("cpu"), torch.float32))
    assert found["seconds_left"] == pytest.approx(10 * found["seconds"])
    assert found["memory_mb"] > 1
    meter.step()
    assert meter.read(steps_left=0)["cells_per_second"] == 0


def test_trackers_get_numbers_under_their_full_names():
    assert flat("se2", {"losses": {"mcm": 0.5}, "lr": 1e-3, "note": "no number"}) == {"se2/losses/mcm": 0.5, "se2/lr": 1e-3}


def test_a_tracker_that_is_not_installed_is_refused_before_anything_starts():
    with pytest.raises(ConfigError, match="found no package .no_such_tracker.; expected it to be installed"):
        require_trackers(["no_such_tracker"])
