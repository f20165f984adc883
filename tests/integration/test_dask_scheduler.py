"""A build whose tasks run in the workers of a dask scheduler, as they would on other machines, gives the same bytes."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from synth import corpus_config

from corpus.build import build_corpus
from corpus.tasks import TaskConfig
from stofm.durable import tree_sha256

SCHEDULER = "from distributed.cli.dask_scheduler import main; main()"
WORKER = "from distributed.cli.dask_worker import main; main()"


@pytest.fixture
def scheduler(tmp_path) -> Iterator[str]:
    """The address of a scheduler with two workers, each a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    commands = [
        [sys.executable, "-c", SCHEDULER, "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"],
        [sys.executable, "-c", WORKER, address, "--nworkers", "2", "--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path)],
    ]
    with open(tmp_path / "dask.log", "w") as log:
        processes = [subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path) for command in commands]
    try:
        yield address
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait()


def test_a_build_by_the_workers_of_a_scheduler_is_the_same_bytes(scheduler, tiny_corpus, simulated_paths, tmp_path):
    settings = corpus_config(simulated_paths, tmp_path / "corpus").model_copy(update={"tasks": TaskConfig(scheduler=scheduler)})
    built, alone = (tree_sha256(corpus.folder) for corpus in (build_corpus(settings), tiny_corpus))
    assert {name: built[name] for name in built if name != "config.yaml"} == {name: alone[name] for name in alone if name != "config.yaml"}
