"""How long a slice takes to build and how much memory, guessed from its size before anything is done."""

from __future__ import annotations

from dataclasses import dataclass

# Fitted by eye to processor time and peak memory of one core (x86-64, 2026-11-21) on real slices of 0.3 to 12 million entries: reading,
# truth, medians and gene tokens. Right within a factor of two there; a machine of another kind may differ as much again.
SECONDS, SECONDS_PER_ENTRY = 1.0, 1.0e-6
MEMORY_MB, MEMORY_MB_PER_ENTRY = 250.0, 85e-6


@dataclass(frozen=True)
class BuildCost:
    """What building takes: seconds of one core, and the most memory at a time."""

    seconds: float
    memory_mb: float


def build_cost(n_entries: float) -> BuildCost:
    """Estimate the cost of a slice whose matrix holds so many counts that are not zero."""
    return BuildCost(SECONDS + SECONDS_PER_ENTRY * n_entries, MEMORY_MB + MEMORY_MB_PER_ENTRY * n_entries)
