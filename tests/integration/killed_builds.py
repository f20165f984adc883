"""A process that runs `stofm build` again and again, each time in a child of its own that is killed after a while drawn at random.

python killed_builds.py CONFIG OUT N_KILLS SEED      at least so many kills

A build that ended before its time came is begun anew in an empty folder, so that every kill hits one at work. At last it runs to its end.
Beside it, OUT-whole is the corpus of a build that was never killed. Prints how many kills hit, and at how many different states of the folder.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import tools.build  # noqa: F401 - imported before the forks
from tools.cli import main


def start(words: list[str]) -> int:
    """Run a command in a child; returns its process id."""
    child = os.fork()
    if child == 0:
        sys.argv = ["stofm", *words]
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                main()
        except SystemExit as stop:
            os._exit(stop.code if isinstance(stop.code, int) else 1)
        os._exit(0)
    return child


def seconds_of(words: list[str]) -> float:
    """Run a command to its end; returns how long that took."""
    began = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(start(words), 0)[1]) == 3, "the build did not end well"
    return time.monotonic() - began


if __name__ == "__main__":
    config, out, n_kills, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    words, rng, n_hits, states = ["build", config, f"out={out}"], random.Random(seed), 0, set()
    whole = seconds_of(["build", config, f"out={out}-whole"])
    while n_hits < n_kills or (len(states) < 2 and n_hits < 10 * n_kills):  # kills that all came at one state say little
        child = start(words)
        time.sleep(rng.uniform(0, whole))
        os.kill(child, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3:  # finished, one slice set aside
            shutil.rmtree(out)
            continue
        n_hits += 1
        states.add(tuple(sorted(f"{folder}/{file}" for folder, _, files in os.walk(out) for file in files)))  # its last child may be sweeping
    seconds_of(words)
    print(n_hits, len(states))
