"""What a run tells while it goes: rates, share of the device's peak, time waited for data, memory, time left."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch

PEAK_SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product tells what a device can do


@dataclass(frozen=True)
class Work:
    """What a batch consists of; `flops` are those of the model, forward and backward, padding and repetitions left out."""

    cells: int
    sub_slices: int
    tokens: int
    flops: float

    def __add__(self, other: Work) -> Work:
        return Work(self.cells + other.cells, self.sub_slices + other.sub_slices, self.tokens + other.tokens, self.flops + other.flops)


NOTHING = Work(0, 0, 0, 0.0)


class Meter:
    """Adds up what is done between two readings."""

    def __init__(self, device: torch.device, dtype: torch.dtype, *, n_ranks: int) -> None:
        self.device, self.dtype, self.n_ranks = device, dtype, n_ranks
        self._start()

    def _start(self) -> None:
        self.began, self.waited, self.n_steps, self.work = time.perf_counter(), 0.0, 0, NOTHING

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent in the block is time waited for data."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def add(self, work: Work) -> None:
        """Note the work of a micro-batch of this process."""
        self.work += work

    def step(self) -> None:
        """Note the end of a step."""
        self.n_steps += 1

    def read(self, *, steps_left: int) -> dict[str, float]:
        """Return the measures since the last reading, rates over all processes, and start anew."""
        seconds = time.perf_counter() - self.began
        measures = {
            "seconds": seconds / self.n_steps,
            "data_wait_share": self.waited / seconds,
            "cells_per_second": self.work.cells * self.n_ranks / seconds,
            "sub_slices_per_second": self.work.sub_slices * self.n_ranks / seconds,
            "tokens_per_second": self.work.tokens * self.n_ranks / seconds,
            "peak_share": self.work.flops / seconds / peak_flops(self.device, self.dtype),
            "memory_mb": peak_memory_mb(self.device),
            "seconds_left": seconds / self.n_steps * steps_left,
        }
        self._start()
        return measures


@lru_cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product on this device, the best of a few: what can be reached here, not what a data sheet says."""
    side = PEAK_SIDE["cpu" if device.type == "cpu" else "cuda"]
    matrix, best = torch.ones(side, side, device=device, dtype=dtype), float("inf")
    for _ in range(4):
        began = time.perf_counter()
        matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def peak_memory_mb(device: torch.device) -> float:
    """The most memory so far: of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
