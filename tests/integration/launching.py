"""What the tests of launch recipes share: programs that stand in for a scheduler's, and waiting for a run to get somewhere."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from pretrain.run_log import read_run_log

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BIN = Path(sys.executable).parent

# Slurm's own programs are the boundary: these do what they promise, for tasks of one machine.
SRUN = f"""#!{sys.executable}
import os, pathlib, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
ranks = map(str, range(int(os.environ["SLURM_NTASKS"])))
tasks = [subprocess.Popen(words, env=os.environ | {{"SLURM_PROCID": rank, "SLURM_LOCALID": rank}}) for rank in ranks]
pathlib.Path(os.environ["STAND_IN"], "tasks").write_text(" ".join(str(task.pid) for task in tasks))
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/usr/bin/env bash
case $1 in
  show) [ "$2" = hostnames ] && printf '%s\\n' localhost other ;;
  requeue) echo "$2" >> "$STAND_IN/requeued" ;;
esac
"""
# Says with what it was started, then ends as it is told: at once, or as the trainer does after a signal.
TRAINER = """#!/usr/bin/env bash
trap 'exit 75' TERM USR1
printf '%s|' "$RANK" "$LOCAL_RANK" "$WORLD_SIZE" "$MASTER_ADDR" "$MASTER_PORT" "$@" > "$STAND_IN/said-$RANK"
[ -z "${ENDS_WITH:-}" ] || exit "$ENDS_WITH"
while :; do sleep 0.05; done
"""


def programs(folder: Path, **texts: str) -> Path:
    """Write programs into a folder that goes in front of PATH."""
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def environment(*in_front: Path, **more: object) -> dict[str, str]:
    """The environment of a launcher: our programs before others, one thread a process."""
    path = os.pathsep.join([*map(str, in_front), str(BIN), os.environ["PATH"]])
    return os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in more.items()}


def wait_for(happened, *, seconds: float, process: subprocess.Popen | None = None) -> None:
    """Return once `happened()` is true; the test fails if that takes longer, or the process ends before."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it took too long"
        assert process is None or process.poll() is None, f"it ended with {process.returncode}"
        time.sleep(0.05)


def steps_logged(run: Path, stage: str) -> int:
    return sum(line["stage"] == stage for line in read_run_log(run / "losses.jsonl"))
