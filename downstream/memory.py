"""Memory: a budget that a person names, and work in batches that become smaller where memory runs out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from stofm.errors import ConfigError, EnvironmentFault

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
SUB_SLICES_PER_BATCH = {"cpu": 2, "gpu": 16}
BYTES_PER_CELL = 300  # with its arrays on disk: measured, see tests/benchmarks/bench_embedding.py
BYTES_PER_CELL_IN_MEMORY = 6_000  # counted: at most five arrays of 256 float32 at a time, gene tokens, and what clustering takes of a cell
BYTES_PER_TOKEN, BYTES_PER_PAIR = 25_000, 12  # of a sub-slice in the transformer: its layers and entries; the matrix of distances
T = TypeVar("T")


def require_room(n_cells: int, max_memory: int | None, *, bytes_per_cell: int) -> None:
    """Raise `EnvironmentFault` if a slice of `n_cells` cells, found already, cannot be embedded in `max_memory` bytes."""
    needed = resident_bytes() + n_cells * bytes_per_cell
    if max_memory is not None and needed > max_memory:
        raise EnvironmentFault(
            f"{n_cells:,} cells need about {needed / 1e9:.1f} GB in all; expected at most {max_memory / 1e9:.1f}, the memory allowed. "
            "Allow more with --max-memory, or embed sections of the slice one by one."
        )


def sub_slices_in(max_memory: int | None, n_cells: int, *, on_gpu: bool = False) -> int:
    """Return how many sub-slices of at most `n_cells` cells are read at once, one at least; a GPU has memory of its own."""
    if on_gpu or max_memory is None:
        return SUB_SLICES_PER_BATCH["gpu" if on_gpu else "cpu"]
    room = max_memory - resident_bytes()
    return max(1, min(SUB_SLICES_PER_BATCH["cpu"], room // (n_cells * BYTES_PER_TOKEN + n_cells**2 * BYTES_PER_PAIR)))


def resident_bytes() -> int:
    """Return the memory that this process holds, in bytes; at its peak so far where the system tells no more."""
    import resource

    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def return_freed() -> None:
    """Return to the system what was freed: glibc keeps the heap of one stage of work for the next, which may need other sizes."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def parse_bytes(text: str) -> int:
    """Read a size (``8GB``, ``500 MiB``); `ConfigError` if it is none."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?|)B?\s*", text.upper())
    if found is None or not float(found[1]):
        raise ConfigError(f"--max-memory: found {text!r}; expected a size, for example 8GB.")
    return int(float(found[1]) * UNITS[found[2]])


def in_batches(items: Sequence[T], work: Callable[[list[T]], None], *, n_most: int, what: str) -> int:
    """Hand all items to `work`, in order and at most `n_most` at a time; where memory runs out, half as many from there on.

    `work` must leave nothing behind when it fails for memory: the same items come again in smaller batches.

    Returns
    -------
    int, the size of the batches at the end

    Raises
    ------
    EnvironmentFault
        If memory does not suffice for one item.
    """
    start = 0
    while start < len(items):
        batch = list(items[start : start + n_most])
        try:
            work(batch)
        except (MemoryError, RuntimeError) as error:
            n_most = _half(len(batch), error, what)
            continue
        start += len(batch)
    return n_most


def halving(work: Callable[[int], T], n_most: int, *, what: str) -> T:
    """Return ``work(n_most)``; where memory runs out, half as much is tried, and `EnvironmentFault` raised if 1 is too much."""
    while True:
        try:
            return work(n_most)
        except (MemoryError, RuntimeError) as error:
            n_most = _half(n_most, error, what)


def _half(n: int, error: BaseException, what: str) -> int:
    """Half of what memory did not suffice for; raises where `error` is another one, or nothing is left to halve."""
    if not is_out_of_memory(error):
        raise error
    if n == 1:
        raise EnvironmentFault(f"memory ran out over one of the {what}; expected room for it. Free some, or use another device.") from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return n // 2


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether numpy, or torch on any device, found no memory; torch on CPUs says so in words alone."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
