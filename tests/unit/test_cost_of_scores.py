"""Cost of a piece of work: its own memory and time, and no one else's."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from downstream.cost import Cost, measured


def test_seconds_are_those_of_the_block():
    with measured() as cost:
        time.sleep(0.05)
    assert 0.05 <= cost.seconds < 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell peak memory")
def test_the_peak_is_that_of_the_block_and_not_of_an_earlier_one():
    with measured() as large:
        np.ones(20_000_000).sum()
    with measured() as small:
        np.ones(1_000_000).sum()
    assert 150 < large.peak_mb < 250
    assert small.peak_mb < 40


def test_costs_one_after_the_other():
    both = Cost(1.0, 50.0) + Cost(2.0, 20.0)
    assert (both.seconds, both.peak_mb) == (3.0, 50.0)
