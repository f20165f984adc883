"""Several processes under torchrun train what one process trains, because a step sees the same micro-batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli import succeed, write_yaml

from downstream.embedding import load_embedder
from pretrain.run_log import read_run_log

TORCHRUN = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc_per_node", "2", "--no-python"]


@pytest.fixture(scope="module")
def config(tiny_run_config, tmp_path_factory) -> Path:
    settings = tiny_run_config.model_dump(mode="json") | {"log_every": 1}
    for stage in ("encoder_stage", "se2_stage"):
        settings[stage] |= {"max_steps": 4, "epochs": 8.0, "n_micro_batches": 2}
    return write_yaml(tmp_path_factory.mktemp("processes") / "train.yaml", settings)


def in_two_processes(*words: object) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, Path(sys.executable).with_name("stofm"), *words]
    return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False)


def test_two_processes_have_the_losses_of_one(config):
    here = config.parent
    assert torch.get_num_threads() == 1, "as torchrun sets it; another number sums in another order"
    succeed("train", config, f"out={here / 'one'}")
    done = in_two_processes("train", config, f"out={here / 'two'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model: ") == 1, "only the first process speaks"
    one, two = (read_run_log(here / name / "losses.jsonl") for name in ("one", "two"))
    assert [(line["stage"], line["step"]) for line in two] == [(line["stage"], line["step"]) for line in one]
    assert len(one) == 8
    for mine, theirs in zip(one, two, strict=True):
        assert theirs["losses"] == pytest.approx(mine["losses"], abs=1e-5)
    assert load_embedder(here / "two/model").vocab.sha256 == load_embedder(here / "one/model").vocab.sha256


def test_micro_batches_that_the_processes_do_not_divide_are_refused_before_anything_is_written(config):
    out = config.parent / "three"
    done = in_two_processes("train", config, f"out={out}", "encoder_stage.n_micro_batches=3")
    errors = {line for line in done.stderr.splitlines() if line.startswith("error: ")}
    assert errors == {"error: encoder_stage.n_micro_batches: found 3 for 2 processes; expected a multiple of their number."}
    assert "exitcode  : 2" in done.stderr
    assert "tools/cli.py" not in done.stderr, "the traceback that torchrun shows is its own"
    assert not out.exists()
