"""What a piece of work costs: seconds, and the most memory that it held beyond what was held before."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Cost:
    """Seconds of wall clock, and peak memory in MB (10^6 bytes; NaN where the system does not tell); filled when the work is done."""

    seconds: float = 0.0
    peak_mb: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """One after the other: seconds add up, the larger peak stays."""
        return Cost(self.seconds + other.seconds, max(self.peak_mb, other.peak_mb))


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure the block; what it yields is filled at its end, also when the block fails.

    The peak is that of the whole process (Linux: its high-water mark, which is set back first), so nothing else should run in it, and
    one measurement cannot hold another.
    """
    cost, before, began = Cost(), _reset_peak(), time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - began
        cost.peak_mb = max(0.0, _resident_mb("VmHWM") - before)


def _reset_peak() -> float:
    try:
        RESET.write_text("5")
    except OSError:
        return float("nan")
    return _resident_mb("VmRSS")


def _resident_mb(name: str) -> float:
    try:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    except (OSError, StopIteration):
        return float("nan")
    return int(line.split()[1]) * 1024 / 1e6
