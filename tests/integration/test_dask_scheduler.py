"""A build whose tasks run in the workers of a dask scheduler, as they would on other machines, gives the same bytes; also if the scheduler died."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
from synth import corpus_config

from corpus.build import build_corpus
from corpus.store import Corpus
from corpus.tasks import TaskConfig
from stofm.durable import tree_sha256
from stofm.errors import EnvironmentFault

SCHEDULER = "from distributed.cli.dask_scheduler import main; main()"
WORKER = "from distributed.cli.dask_worker import main; main()"


@contextmanager
def dask(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address of a scheduler with a worker that does two tasks at a time, a process of its own; and the scheduler's process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    commands = [
        [sys.executable, "-c", SCHEDULER, "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"],
        [sys.executable, "-c", WORKER, address, "--no-nanny", "--nthreads", "2", "--no-dashboard", "--local-directory", str(tmp_path)],
    ]
    with open(tmp_path / "dask.log", "w") as log:
        processes = [subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path) for command in commands]
    try:
        yield address, processes[0]
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait()


def test_a_build_by_the_workers_of_a_scheduler_is_the_same_bytes(tiny_corpus, simulated_paths, tmp_path):
    with dask(tmp_path) as (address, _):
        require_same(build(simulated_paths, tmp_path / "corpus", address), tiny_corpus)


@pytest.mark.slow
def test_a_build_whose_scheduler_dies_says_so_and_goes_on_by_another(tiny_corpus, simulated_paths, tmp_path):
    out = tmp_path / "corpus"
    with dask(tmp_path) as (address, scheduler):

        def kill_at_work() -> None:
            while not any(out.glob("slices/*")):
                time.sleep(0.05)
            scheduler.kill()

        killer = Thread(target=kill_at_work)
        killer.start()
        with pytest.raises(EnvironmentFault, match=rf"^tasks.scheduler {address}: lost while tasks ran; expected .* the same command again"):
            build(simulated_paths, out, address)
        killer.join()
    with dask(tmp_path) as (address, _):
        require_same(build(simulated_paths, out, address), tiny_corpus)


def build(paths: list[Path], out: Path, scheduler: str) -> Corpus:
    return build_corpus(corpus_config(paths, out).model_copy(update={"tasks": TaskConfig(scheduler=scheduler)}))


def require_same(found: Corpus, expected: Corpus) -> None:
    """All bytes but those of the configuration, which names the scheduler."""
    built, alone = (tree_sha256(corpus.folder) for corpus in (found, expected))
    assert {name: built[name] for name in built if name != "config.yaml"} == {name: alone[name] for name in alone if name != "config.yaml"}
