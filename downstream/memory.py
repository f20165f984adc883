"""Memory: a budget that a person names, and work in batches that become smaller where memory runs out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from stofm.errors import ConfigError, EnvironmentFault

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
T = TypeVar("T")


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
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise EnvironmentFault(f"memory ran out over one of the {what}; expected room for it. Free some, or use another device.") from error
            n_most = len(batch) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        start += len(batch)
    return n_most


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether numpy, or torch on any device, found no memory; torch on CPUs says so in words alone."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
