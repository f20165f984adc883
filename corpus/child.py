"""Run a function in a child process with a memory limit and a time limit, so that a crash is a return value.

A *nursery* is a process of one thread that imported the libraries once and forks a child per task, which costs
milliseconds. It ends, and its child with it, when the process that started it does.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import pickle
import resource
import select
import signal
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

from corpus.faults import Fault, fault_of, fault_of_exit

ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Outcome:
    """What became of a task: its result, or a fault; and the most memory that it held, bytes."""

    result: Any
    fault: Fault | None
    peak_bytes: int = 0


@dataclass(frozen=True)
class Work:
    """A function of a module, what it is called with, and where.

    Attributes
    ----------
    function, arguments
        The child calls ``function(**arguments)``.
    shared : callable, optional
        Called before a child is forked, so that all children find what it keeps in memory: libraries, large tables.
    cwd : str
        The working directory that relative paths among the arguments start from.
    """

    function: Callable[..., Any]
    arguments: dict[str, Any]
    shared: Callable[[], Any] | None = None
    cwd: str = field(default_factory=os.getcwd)


class Nursery:
    """A process that forks children, one at a time."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", "from corpus.child import serve; serve()"]
        environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout

    def run(self, work: Work, *, memory_bytes: int, timeout_seconds: float) -> Outcome:
        """Do a piece of work in a child; an `Outcome` comes back whatever happens to it."""
        try:
            _write(self._in, pickle.dumps((work, memory_bytes, timeout_seconds)))
            return pickle.loads(_read(self._out))
        except (OSError, EOFError):
            return Outcome(None, Fault("environment", "SIGKILL", "the process that starts tasks was ended"))

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End the process, and the child that it may be waiting for."""
        with contextlib.suppress(BrokenPipeError):
            self._in.close()
        self._process.wait()
        self._out.close()


_idle: list[Nursery] = []
_all: list[Nursery] = []


def run_in_child(work: Work, *, memory_bytes: int, timeout_seconds: float) -> Outcome:
    """Do a piece of work in a child process of its own.

    Parameters
    ----------
    work : Work
        Its function must be one that another process can import.
    memory_bytes : int
        Address space that the function may take beyond what the libraries have; more is a `MemoryError`.
    timeout_seconds : float
        After this the child is killed.
    """
    try:
        nursery = _idle.pop()
    except IndexError:
        nursery = Nursery()
        _all.append(nursery)
    outcome = nursery.run(work, memory_bytes=memory_bytes, timeout_seconds=timeout_seconds)
    if nursery.is_alive:
        _idle.append(nursery)
    return outcome


def end_children() -> None:
    """End every child that runs."""
    for nursery in [one for one in _all if one not in _idle]:
        _all.remove(nursery)
        nursery.close()


@atexit.register
def _end_all() -> None:
    _idle.clear()
    end_children()


def serve() -> None:
    """Fork a child for each task that comes in, until nobody is there to send one."""
    tasks, outcomes = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # whatever a library prints must not end up among the outcomes
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the builder hears it, and its end is ours
    warnings.simplefilter("ignore")
    while True:
        try:
            message = _read(tasks)
        except EOFError:
            return
        try:
            work, memory_bytes, timeout_seconds = pickle.loads(message)
            os.chdir(work.cwd)
        except Exception as error:  # a function that cannot be imported here, a folder that is not here
            outcome = Outcome(None, fault_of(error))
        else:
            if work.shared is not None:
                with contextlib.suppress(Exception):  # the child meets the same error, and reports it
                    work.shared()
                gc.freeze()  # collections in a child leave the pages alone that it shares with us
            outcome = _forked(work, memory_bytes, timeout_seconds, nobody_waits=tasks)
        with contextlib.suppress(BrokenPipeError):  # it ended; the next reading says so
            _write(outcomes, pickle.dumps(outcome))


def _forked(work: Work, memory_bytes: int, timeout_seconds: float, *, nobody_waits: IO[bytes]) -> Outcome:
    if select.select([nobody_waits], [], [], 0)[0]:  # it ended while we loaded; a child must not touch what its successor builds
        os._exit(0)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _limit_memory(memory_bytes)
        try:
            outcome = Outcome(work.function(**work.arguments), None)
        except BaseException as error:
            outcome = Outcome(None, fault_of(error))
        with os.fdopen(write_end, "wb") as pipe:
            _write(pipe, pickle.dumps(outcome))
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb", buffering=0) as pipe:
        ready = select.select([pipe, nobody_waits], [], [], timeout_seconds)[0]
        if pipe not in ready:
            os.kill(child, signal.SIGKILL)
        try:
            message = _read(pipe)
        except EOFError:  # it died, by us or by itself
            message = None
    _, status, usage = os.wait4(child, 0)
    if message is not None:
        outcome = pickle.loads(message)
        return Outcome(outcome.result, outcome.fault, usage.ru_maxrss * 1024)
    if not ready:
        return Outcome(None, Fault("environment", "TIMEOUT", f"the task took more than {timeout_seconds:g} seconds"))
    return Outcome(None, fault_of_exit(os.waitstatus_to_exitcode(status)), usage.ru_maxrss * 1024)


def _limit_memory(memory_bytes: int) -> None:
    """Let this process take `memory_bytes` of address space more than it has; only Linux holds to it."""
    if sys.platform != "linux":
        return
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = used + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _write(stream: IO[bytes], message: bytes) -> None:
    stream.write(LENGTH.pack(len(message)) + message)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes:
    return _exactly(stream, LENGTH.unpack(_exactly(stream, LENGTH.size))[0])


def _exactly(stream: IO[bytes], n_bytes: int) -> bytes:
    parts = bytearray()
    while len(parts) < n_bytes:
        part = stream.read(n_bytes - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
