"""Tasks: all are done whatever the machine does meanwhile, and nothing is blamed on a slice that is not its fault."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from corpus import tasks
from corpus.child import Work
from corpus.tasks import Patience, Task, TaskConfig, run_tasks
from stofm.errors import BadSlice, ConfigError, EnvironmentFault


@pytest.fixture(autouse=True)
def short_waits(monkeypatch) -> None:
    monkeypatch.setattr(tasks, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(tasks, "CONNECT_SECONDS", 1.0)


def square(number: int) -> int:
    return number * number


def refuse() -> None:
    raise BadSlice("NO_COORDS", "no coordinates")


def misread_settings() -> None:
    raise ConfigError("no such thing")


def divide() -> float:
    return 1 / 0


def fail_first(times: int, how: str, folder: Path) -> str:
    """Fail this many times, each time leaving a file that says so; then end well."""
    n_failed = len(list(folder.iterdir()))
    if n_failed == times:
        return "done"
    (folder / str(n_failed)).touch()
    if how == "disk":
        raise OSError(errno.ENOSPC, "No space left on device")
    if how == "memory":
        raise MemoryError
    os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGSEGV)
    raise AssertionError


def results(work: list[Work], config: TaskConfig, *, minutes: float = 1.0, report=lambda _: None) -> dict[str, object]:
    """What became of each piece of work, by its number: its result or the code of its fault."""
    ended = run_tasks([Task(str(number), one) for number, one in enumerate(work)], config, Patience(minutes, report, next_wait=0.01))
    return {task.name: outcome.result if outcome.fault is None else outcome.fault.code for task, outcome in ended}


PLACES = {"one worker": TaskConfig(n_workers=1), "dask cluster": TaskConfig(n_workers=2)}


@pytest.mark.parametrize("place", PLACES)
def test_every_task_ends_and_a_bad_slice_stops_no_other(place):
    work = [Work(square, {"number": 2}), Work(refuse, {}), Work(square, {"number": 3})]
    assert results(work, PLACES[place]) == {"0": 4, "1": "NO_COORDS", "2": 9}


@pytest.mark.parametrize(("how", "times"), [("disk", 4), ("memory", 2), ("killed", 2), ("crashed", 2)])
def test_a_fault_that_passes_costs_nothing(how, times, tmp_path):
    work = [Work(fail_first, {"times": times, "how": how, "folder": tmp_path}), Work(square, {"number": 3})]
    assert results(work, TaskConfig(n_workers=1)) == {"0": "done", "1": 9}


def test_a_pause_is_announced_with_its_cause(tmp_path):
    reports: list[str] = []
    results([Work(fail_first, {"times": 1, "how": "disk", "folder": tmp_path})], TaskConfig(n_workers=1), report=reports.append)
    assert len(reports) == 1
    assert reports[0].startswith("paused for 0.01 s: 0: ENOSPC")


@pytest.mark.parametrize("how", ["memory", "killed"])
def test_a_task_that_never_has_enough_memory_ends_the_build_with_the_settings_to_change(how, tmp_path):
    with pytest.raises(EnvironmentFault, match=r"0: found (ENOMEM|SIGKILL) .* in each of 3 tries.*Raise `tasks.memory_gb`"):
        results([Work(fail_first, {"times": 9, "how": how, "folder": tmp_path})], TaskConfig(n_workers=1))


def test_a_slice_that_crashes_its_reader_each_time_is_the_slices_fault(tmp_path):
    assert results([Work(fail_first, {"times": 9, "how": "crashed", "folder": tmp_path})], TaskConfig(n_workers=1)) == {"0": "CRASHED"}


def test_patience_ends(tmp_path):
    with pytest.raises(EnvironmentFault, match=r"0: found ENOSPC .* minutes; expected the disk and the mounts to work"):
        results([Work(fail_first, {"times": 99, "how": "disk", "folder": tmp_path})], TaskConfig(n_workers=1), minutes=0.001)


def test_a_fault_of_the_settings_ends_the_build():
    with pytest.raises(ConfigError, match="no such thing"):
        results([Work(misread_settings, {})], TaskConfig(n_workers=1))


def test_our_own_mistake_ends_the_build_with_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)0:.*in divide.*ZeroDivisionError"):
        results([Work(divide, {})], TaskConfig(n_workers=1))


def test_a_scheduler_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"tasks.scheduler tcp://127.0.0.1:9: .*expected a running dask scheduler"):
        results([Work(square, {"number": 2})], TaskConfig(scheduler="tcp://127.0.0.1:9"))
