"""A process that runs `stofm train` again and again, each time in a child of its own, some of them killed at a chosen moment.

python interrupted.py CONFIG OUT MOMENT [OUT MOMENT ...]

The libraries are imported once and nothing is computed in this process, so that a child costs a fork. A child with a
moment sends itself SIGKILL when training gets there, and the same command is then run to its end.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import pretrain.run_log
import pretrain.state
import pretrain.train
import stofm.checkpoint
import tools.train  # noqa: F401 - imported before the forks
from tools.cli import main


def kill(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str, happens: Callable[..., bool] = lambda *_, **__: True) -> None:
    """Die at the call of a function for which `happens` holds."""
    original = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: kill() if happens(*args, **kwargs) else original(*args, **kwargs))


def logs(stage: str, step: int) -> None:
    before(pretrain.run_log.RunLog, "write", lambda _, found, at, *__, **___: (found, at) == (stage, step))


def checkpoint(stage: str, step: int) -> Callable[..., bool]:
    return lambda path, value: (value.get("stage"), value.get("step")) == (stage, step)


MOMENTS: dict[str, Callable[[], None]] = {
    "never": lambda: None,
    "before the first checkpoint": lambda: logs("encoder", 2),
    "encoder stage": lambda: logs("encoder", 5),
    "encoder checkpoint half written": lambda: before(pretrain.state, "write_json", checkpoint("encoder", 6)),
    "encoder checkpoint written, old one not dropped": lambda: before(pretrain.state, "remove"),
    "last step of the encoder stage": lambda: logs("encoder", 8),
    "encoder half written": lambda: before(pretrain.train.CellEncoder, "save"),
    "slice 1 embedded": lambda: before(pretrain.train, "embedded_shards", lambda _, __, slice_id, *___, **____: slice_id == "slice_1"),
    "SE(2) stage": lambda: logs("se2", 5),
    "SE(2) checkpoint half written": lambda: before(pretrain.state, "write_json", checkpoint("se2", 6)),
    "model half written": lambda: before(stofm.checkpoint, "write_json"),
}


def run(words: list[str], moment: str) -> int:
    """Run a command in a child; returns its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            sys.argv = ["stofm", *words]
            MOMENTS[moment]()
            main()
        except SystemExit as stop:
            os._exit(stop.code if isinstance(stop.code, int) else 1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    config, *rest = sys.argv[1:]
    for out, moment in zip(rest[::2], rest[1::2], strict=True):
        words = ["train", config, f"out={out}"]
        if moment != "never":
            assert run(words, moment) == -signal.SIGKILL, f"{moment}: training never got there"
        assert run(words, "never") == 0, f"{moment}: the run did not end well"
