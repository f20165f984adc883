"""What benchmarks share: rounds in which the compared functions take turns, and the dated file that keeps a result."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from stofm.durable import write_text


def take_turns(
    functions: Mapping[str, Callable[[], object]], n_rounds: int, *, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of every function in every round, by default of all processors together."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(n_rounds):
        for name, function in functions.items():
            start = clock()
            function()
            seconds[name].append(clock() - start)
    return seconds


def peak_bytes() -> int:
    """The most memory that this program held; `ru_maxrss` counts what the process held before the program was started in it, too."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])


def forget_peak() -> None:
    """Let `peak_bytes` begin with what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


def ratio(seconds: Mapping[str, Sequence[float]], slow: str, fast: str) -> float:
    """How many times as long the median round of one takes as that of the other."""
    return float(np.median(seconds[slow]) / np.median(seconds[fast]))


def timing_rows(seconds: Mapping[str, Sequence[float]], *, slow: str) -> list[str]:
    """Rows ``name | median ms | least to most | ratio to slow`` of a table."""
    return [
        f"| {name} | {np.median(rounds) * 1e3:,.1f} | {min(rounds) * 1e3:,.1f} to {max(rounds) * 1e3:,.1f} | {ratio(seconds, slow, name):.1f} |"
        for name, rounds in seconds.items()
    ]


def write_report(theme: str, lines: Sequence[str], *, work: object, packages: Sequence[str], on_gpu: bool = False) -> None:
    """Keep a run as ``results/<theme>_cpu_<date>.md``, or ``_gpu_``: the lines given, then command, work, commit, versions and machine."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform(terse=True)}, Python {platform.python_version()}"
    machine = f"{torch.cuda.get_device_name()}; {machine}" if on_gpu else machine
    end = f"Command: `make bench`. Work: {work}. Commit: {commit}. Versions: {versions}. Machine: {machine}."
    write_text(Path("results") / f"{theme}_{'gpu' if on_gpu else 'cpu'}_{date.today().isoformat()}.md", "\n".join([*lines, "", end]) + "\n")
