"""Children: what a task's end looks like from outside, however it ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from corpus.child import Nursery, Work, run_in_child
from corpus.faults import Fault
from stofm.errors import BadSlice, ConfigError

LIMITS = {"memory_bytes": 10**9, "timeout_seconds": 60.0}


def give_back(value):
    return value


def where() -> str:
    return os.getcwd()


def print_loudly() -> int:
    print("a line that no protocol expects", flush=True)
    os.write(1, b"\xff" * 1000)
    return 1


def die_by(number: int) -> None:
    os.kill(os.getpid(), number)


def leave(code: int) -> None:
    os._exit(code)


def refuse() -> None:
    raise BadSlice("NO_COORDS", "no coordinates")


def misread_settings() -> None:
    raise ConfigError("no such thing")


def divide() -> float:
    return 1 / 0


def take_memory() -> int:
    return int(np.ones(3 * 10**8).sum())  # 2.4 GB


def rest(seconds: float) -> None:
    time.sleep(seconds)


def write_and_rest(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(60)


@pytest.mark.parametrize("value", [None, {"a": [1, 2]}, b"x" * 10**6], ids=["none", "nested", "larger than a pipe"])
def test_a_result_comes_back(value):
    assert run_in_child(Work(give_back, {"value": value}), **LIMITS).result == value


def test_a_child_works_where_its_work_says(tmp_path):
    assert run_in_child(Work(where, {}, cwd=str(tmp_path)), **LIMITS).result == str(tmp_path)


def test_what_a_library_prints_does_not_come_between():
    assert run_in_child(Work(print_loudly, {}), **LIMITS).result == 1


ENDS = {
    "bad slice": (Work(refuse, {}), "slice", "NO_COORDS"),
    "bad setting": (Work(misread_settings, {}), "settings", "ConfigError"),
    "our mistake": (Work(divide, {}), "bug", "ZeroDivisionError"),
    "too much memory": (Work(take_memory, {}), "environment", "ENOMEM"),
    "killed": (Work(die_by, {"number": signal.SIGKILL}), "environment", "SIGKILL"),
    "crashed": (Work(die_by, {"number": signal.SIGSEGV}), "slice", "CRASHED"),
    "left": (Work(leave, {"code": 7}), "bug", "CRASHED"),
}


@pytest.mark.parametrize("end", ENDS)
def test_every_end_of_a_child_is_a_fault_with_a_name_and_the_next_task_is_run(end):
    work, kind, code = ENDS[end]
    fault = run_in_child(work, **LIMITS).fault
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.code) == (kind, code)
    assert run_in_child(Work(give_back, {"value": 3}), **LIMITS).result == 3


def test_a_child_that_takes_too_long_is_killed():
    fault = run_in_child(Work(rest, {"seconds": 60.0}), memory_bytes=10**9, timeout_seconds=0.2).fault
    assert fault is not None
    assert (fault.kind, fault.code) == ("environment", "TIMEOUT")


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_child_ends_with_the_process_that_wanted_it(tmp_path):
    nursery, file = Nursery(), tmp_path / "pid"
    waiting = threading.Thread(target=nursery.run, args=(Work(write_and_rest, {"path": file}),), kwargs=LIMITS)
    waiting.start()
    while not file.is_file() or not file.read_text():
        time.sleep(0.05)
    nursery.close()
    waiting.join()
    assert not is_running(int(file.read_text()))
