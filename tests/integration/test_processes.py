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
from pretrain.launch import require_divisible
from pretrain.run_log import read_run_log
from stofm.errors import ConfigError

TORCHRUN = [Path(sys.executable).with_name("torchrun"), "--standalone"]


@pytest.fixture(scope="module")
def config(tiny_run_config, tmp_path_factory) -> Path:
    settings = tiny_run_config.model_dump(mode="json") | {"log_every": 1}
    for stage in ("encoder_stage", "se2_stage"):  # rates that let rounding, which differs between numbers of processes, grow little
        settings[stage] |= {"max_steps": 4, "epochs": 8.0, "n_micro_batches": 4, "optim": {"lr": 1e-6}}
    settings["encoder_stage"]["cells_per_micro_batch"] = 16
    settings["joint_stage"] = {"max_steps": 2, "epochs": 8.0, "n_micro_batches": 4, "refresh_every": 1, "optim": {"lr": 1e-6}}
    return write_yaml(tmp_path_factory.mktemp("processes") / "train.yaml", settings)


def in_processes(n: int, *words: object) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, "--nproc_per_node", str(n), "--no-python", Path(sys.executable).with_name("stofm"), *words]
    return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False)


def test_two_processes_have_the_losses_of_one(config):
    here = config.parent
    assert torch.get_num_threads() == 1, "as torchrun sets it; another number sums in another order"
    succeed("train", config, f"out={here / 'one'}")
    done = in_processes(2, "train", config, f"out={here / 'two'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model: ") == 1, "only the first process speaks"
    one, two = (read_run_log(here / name / "losses.jsonl") for name in ("one", "two"))
    assert [(line["stage"], line["step"]) for line in two] == [(line["stage"], line["step"]) for line in one]
    assert len(one) == 10
    for mine, theirs in zip(one, two, strict=True):
        assert theirs["losses"] == pytest.approx(mine["losses"], rel=1e-6, abs=1e-6)
    assert load_embedder(here / "two/model").vocab.sha256 == load_embedder(here / "one/model").vocab.sha256


def test_micro_batches_that_the_processes_do_not_divide_are_named(tiny_run_config):
    require_divisible(tiny_run_config, 1)
    with pytest.raises(
        ConfigError, match=r"^encoder_stage.n_micro_batches: found 1 for 2 processes; expected a multiple .* Start 1 of them, or set it.$"
    ):
        require_divisible(tiny_run_config, 2)


@pytest.mark.slow
def test_micro_batches_that_the_processes_do_not_divide_are_refused_before_anything_is_written(config):
    out = config.parent / "three"
    done = in_processes(2, "train", config, f"out={out}", "encoder_stage.n_micro_batches=3", "se2_stage.n_micro_batches=3", "joint_stage=null")
    errors = {line for line in done.stderr.splitlines() if line.startswith("error: ")}
    assert errors == {
        "error: encoder_stage.n_micro_batches: found 3 for 2 processes; expected a multiple of their number. Start 1 or 3 of them, or set it."
    }
    assert "exitcode  : 2" in done.stderr
    assert "tools/cli.py" not in done.stderr, "the traceback that torchrun shows is its own"
    assert not out.exists()


@pytest.mark.slow
def test_a_run_that_goes_on_with_more_and_more_processes_has_the_losses_of_one(config):
    """1, then 2, then 4 processes, each stopped after some steps."""
    here = config.parent
    if not (here / "one").is_dir():
        succeed("train", config, f"out={here / 'one'}")
    for n, (stage, step) in zip((1, 2, 4), (("encoder", 2), ("se2", 1), ("", 0)), strict=True):
        command = [
            sys.executable,
            Path(__file__).with_name("stopping.py"),
            stage,
            str(step),
            "train",
            config,
            f"out={here / 'grown'}",
            "save_every=1",
        ]
        launcher = [*TORCHRUN, "--nproc_per_node", str(n), "--no-python"] if n > 1 else []
        done = subprocess.run([*launcher, *command], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == (stage == ""), done.stderr
    one, grown = (read_run_log(here / name / "losses.jsonl") for name in ("one", "grown"))
    assert [(line["stage"], line["step"]) for line in grown] == [(line["stage"], line["step"]) for line in one]
    for mine, theirs in zip(one, grown, strict=True):
        assert theirs["losses"] == pytest.approx(mine["losses"], rel=1e-6, abs=1e-6)
