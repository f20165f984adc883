"""A process that runs `stofm train` again and again, each time in a child of its own, some of them killed at a chosen moment.

python interrupted.py CONFIG FOLDER [KILLS]

The libraries are imported once and nothing is computed in this process, so that a child costs a fork. A child with a
moment sends itself SIGKILL when training gets there; the same command is then started again, and at last runs to its end. With KILLS, there are
so many runs for each stage, each killed once, at a random time after its start.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import anndata  # noqa: F401 - this and others below are imported before the forks
import matplotlib.figure  # noqa: F401
import sklearn.cluster
import sklearn.decomposition  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
from transformers import BertConfig, BertModel  # noqa: F401

import pretrain.embedded
import pretrain.engine
import pretrain.run_log
import pretrain.state
import pretrain.train
import stofm.checkpoint
import tools.train  # noqa: F401
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


def again(slice_id: str) -> Callable[..., bool]:
    return lambda _, folder, found, *__, **___: found == slice_id and folder.name.startswith("joint-")


MOMENTS: dict[str, Callable[[], None]] = {
    "before the first checkpoint": lambda: logs("encoder", 2),
    "encoder step 5": lambda: logs("encoder", 5),
    "encoder checkpoint half written": lambda: before(pretrain.state, "write_json", checkpoint("encoder", 6)),
    "old encoder checkpoint not dropped": lambda: before(pretrain.state, "remove"),
    "encoder half written": lambda: before(pretrain.train.CellEncoder, "save"),
    "slice_1 not embedded": lambda: before(pretrain.embedded, "embedded_shards", lambda _, __, slice_id, *___, **____: slice_id == "slice_1"),
    "SE(2) step 5": lambda: logs("se2", 5),
    "SE(2) checkpoint half written": lambda: before(pretrain.state, "write_json", checkpoint("se2", 6)),
    "joint step 3": lambda: logs("joint", 3),
    "slice_1 not embedded again": lambda: before(pretrain.embedded, "embedded_shards", again("slice_1")),
    "joint step 6": lambda: logs("joint", 6),
    "joint checkpoint half written": lambda: before(pretrain.state, "write_json", checkpoint("joint", 6)),
    "model half written": lambda: before(stofm.checkpoint, "write_json"),
}
# What is done to each run; a run killed more than once is started again after each.
RUNS: dict[str, list[str]] = {
    "never": [],
    "again and again": list(MOMENTS),
}


def run(words: list[str], moment: str | None = None) -> int:
    """Run a command in a child, which dies at a moment; returns its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            sys.argv = ["stofm", *words]
            if moment is not None:
                MOMENTS[moment]()
            main()
        except SystemExit as stop:
            os._exit(stop.code if isinstance(stop.code, int) else 1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def after(stage: str, seconds: float) -> Callable[[], None]:
    """Die so long after a stage began, whatever is going on then."""

    def arm() -> None:
        original = pretrain.train.run_stage

        def run_stage(one: Any, *args: Any, **kwargs: Any) -> None:
            if one.name == stage:
                threading.Timer(seconds, kill).start()
            original(one, *args, **kwargs)

        pretrain.train.run_stage = run_stage

    return arm


def kill_at_random(config: str, folder: str, n_kills: int) -> None:
    """Runs ``<stage>-<number>``, copies of one that was killed before the first step of its stage was kept."""
    rng = random.Random(0)
    for stage in ("encoder", "se2", "joint"):
        begun, timed = f"{folder}/begun-{stage}", f"{folder}/timed-{stage}"
        MOMENTS["first step"], MOMENTS["last step"] = partial(logs, stage, 1), partial(logs, stage, 8)
        assert run(["train", config, f"out={begun}"], "first step") == -signal.SIGKILL
        shutil.copytree(begun, timed)
        began = time.monotonic()
        run(["train", config, f"out={timed}"], "last step")
        last = time.monotonic() - began
        for number in range(n_kills):
            words = ["train", config, f"out={folder}/{stage}-{number}"]
            shutil.copytree(begun, f"{folder}/{stage}-{number}")
            MOMENTS["random"] = after(stage, rng.uniform(0, last))
            run(words, "random")  # one that was quicker than its end came through
            assert run(words) == 0, f"{stage} {number}: the run did not end well"


if __name__ == "__main__":
    config, folder, *n_kills = sys.argv[1:]
    gc.freeze()  # what was imported is left alone by a child's collections, and stays shared
    if n_kills:
        assert run(["train", config, f"out={folder}/never"]) == 0
        kill_at_random(config, folder, int(n_kills[0]))
        sys.exit()
    for name, moments in RUNS.items():
        words = ["train", config, f"out={folder}/{name}"]
        for moment in moments:
            assert run(words, moment) == -signal.SIGKILL, f"{name}: training never got to {moment}"
        assert run(words) == 0, f"{name}: the run did not end well"
