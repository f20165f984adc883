"""Tasks of a build: placed on the cores of this machine or on a dask cluster, waited for, and tried again when the machine failed them."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import Field

from corpus.child import Outcome, Work, end_children, run_in_child
from corpus.faults import CRASHED, Fault, fault_of
from stofm.config import FrozenModel
from stofm.errors import ConfigError, EnvironmentFault

GB = 10**9
N_TRIES = 3  # of a task that was killed, ran out of memory or time, or crashed: alone on the machine after the first
OF_THE_TASK = {"ENOMEM", "SIGKILL", "TIMEOUT", CRASHED}
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 60.0
CONNECT_SECONDS = 30.0
NO_PORT = {"dashboard_address": "127.0.0.1:0"}  # of the scheduler's own web pages, which nobody looks at: any free one


class TaskConfig(FrozenModel):
    """Where the tasks of a build run, and what each may use; none of it changes a byte of the corpus."""

    n_workers: int | None = Field(None, ge=1, description="Tasks at once on this machine; default: one per core.")
    scheduler: str | None = Field(None, pattern=r"^\w+://", description="Address of a dask scheduler (tcp://host:8786); default: this machine alone.")
    memory_gb: float | None = Field(None, gt=0, description="Memory that a task may take; default: an equal share of this machine's.")
    timeout_minutes: float = Field(240.0, gt=0, description="A task that takes longer is stopped and tried again.")
    patience_minutes: float = Field(60.0, ge=0, description="How long to wait for space on the disk or a lost mount before the build stops.")
    reserve_gb: float = Field(1.0, ge=0, description="Free space that a build leaves on the disk of the corpus.")


@dataclass(frozen=True, eq=False)
class Task:
    """A piece of work, and the slice or step that it is for."""

    name: str
    work: Work


@dataclass
class Patience:
    """Waits between tries, each twice as long as the last, until the time for them is used up."""

    minutes: float
    report: Callable[[str], None]
    waited: float = 0.0
    next_wait: float = field(default=FIRST_WAIT_SECONDS)

    def wait(self, name: str, fault: Fault) -> None:
        """Pause; `EnvironmentFault` if nothing went well for `minutes`."""
        if self.waited >= self.minutes * 60:
            raise EnvironmentFault(
                f"{name}: found {fault.code} ({fault.detail}) for {self.waited / 60:.3g} minutes; expected the disk and the mounts to work. "
                "Mend that and start the same command again: it goes on where it stopped."
            )
        seconds = min(self.next_wait, max(self.minutes * 60 - self.waited, 0.1))
        self.report(f"paused for {seconds:.3g} s: {name}: {fault.code} ({fault.detail})")
        time.sleep(seconds)
        self.waited, self.next_wait = self.waited + seconds, min(2 * self.next_wait, LONGEST_WAIT_SECONDS)

    def restore(self) -> None:
        """Start anew: something went well."""
        self.waited, self.next_wait = 0.0, FIRST_WAIT_SECONDS

    def insist(self, name: str, function: Callable[[], Any]) -> Any:
        """Call a function until the machine lets it end; its own errors pass through."""
        while True:
            try:
                return function()
            except Exception as error:
                fault = fault_of(error)
                if fault.kind != "environment":
                    raise
                self.wait(name, fault)


def run_tasks(tasks: Iterable[Task], config: TaskConfig, patience: Patience) -> Iterator[tuple[Task, Outcome]]:
    """Yield each task with its result, or with the fault of its slice, in the order in which they end.

    A fault of the machine pauses all tasks: those that run end, the wait of `patience` passes, and what failed is
    tried again. A task that was killed or ran out of memory or time is tried again alone.

    Raises
    ------
    EnvironmentFault
        If the machine goes on failing.
    ConfigError
        If a task found a fault of the settings.
    """
    waiting, alone, n_tries = deque(tasks), deque[Task](), Counter[str]()
    if not waiting:
        return
    with _placed(config, len(waiting)) as (executor, n_slots):
        run = partial(run_in_child, memory_bytes=memory_bytes(config, n_slots), timeout_seconds=config.timeout_minutes * 60)
        running: dict[Future[Outcome], Task] = {}
        trouble: tuple[Task, Fault] | None = None
        while waiting or alone or running:
            while not trouble and waiting and len(running) < n_slots:
                task = waiting.popleft()
                running[executor.submit(run, task.work)] = task
            if not running:
                if trouble:
                    patience.wait(trouble[0].name, trouble[1])
                    trouble = None
                else:
                    task = alone.popleft()
                    running[executor.submit(run, task.work)] = task
                continue
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task, outcome = running.pop(future), future.result()
                fault = outcome.fault
                if fault is None:
                    patience.restore()
                elif fault.code in OF_THE_TASK and n_tries[task.name] < N_TRIES - 1:
                    n_tries[task.name] += 1
                    alone.append(task)
                    continue
                elif fault.kind == "environment":
                    if fault.code in OF_THE_TASK:
                        raise EnvironmentFault(_hopeless(task, fault, run.keywords["memory_bytes"] / GB))
                    trouble = task, fault
                    waiting.appendleft(task)
                    continue
                elif fault.kind == "settings":
                    raise ConfigError(fault.detail)
                elif fault.kind == "bug":
                    raise RuntimeError(f"{task.name}:\n{fault.detail}")
                yield task, outcome


def memory_bytes(config: TaskConfig, n_slots: int) -> int:
    """Return the memory that a task may take: as set, else nine tenths of this machine's, shared by the tasks at once."""
    if config.memory_gb is not None:
        return int(config.memory_gb * GB)
    return int(0.9 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / n_slots)


def n_workers_of(config: TaskConfig, n_tasks: int) -> int:
    """Return how many tasks run at once on this machine."""
    return max(1, min(config.n_workers or len(os.sched_getaffinity(0)), n_tasks))


@contextmanager
def _placed(config: TaskConfig, n_tasks: int) -> Iterator[tuple[Executor, int]]:
    """Give an executor, and how many tasks it runs at once; children that still run when the block fails are ended."""
    n_workers = n_workers_of(config, n_tasks)
    try:
        if config.scheduler is None and n_workers == 1:
            with ThreadPoolExecutor(1) as executor:
                yield executor, 1
            return
        from distributed import Client, LocalCluster

        if config.scheduler is not None:
            try:
                client = Client(config.scheduler, timeout=CONNECT_SECONDS)
            except OSError as error:
                raise ConfigError(f"tasks.scheduler {config.scheduler}: {error}; expected a running dask scheduler. Start it first.") from error
            logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # it tells of a lost scheduler in tracebacks
            try:
                with client, client.get_executor(pure=False) as executor:
                    yield executor, max(1, sum(client.nthreads().values()))
            except CancelledError as error:  # by the client, when it gives up connecting anew
                raise EnvironmentFault(
                    f"tasks.scheduler {config.scheduler}: lost while tasks ran; expected it to outlive the build. "
                    "Start it and its workers, then the same command again: it goes on where it stopped."
                ) from error
            return
        # Workers are threads, for each task has a process of its own already.
        with (
            LocalCluster(n_workers=n_workers, threads_per_worker=1, processes=False, dashboard_address=None, scheduler_kwargs=NO_PORT) as cluster,
            Client(cluster) as client,
            client.get_executor(pure=False) as executor,
        ):
            yield executor, n_workers
    except BaseException:
        end_children()
        raise


def _hopeless(task: Task, fault: Fault, memory_gb: float) -> str:
    return (
        f"{task.name}: found {fault.code} ({fault.detail}) in each of {N_TRIES} tries, with {memory_gb:.3g} GB; expected it to end well. "
        "Raise `tasks.memory_gb` or `tasks.timeout_minutes`, lower `tasks.n_workers`, or take a larger machine."
    )
