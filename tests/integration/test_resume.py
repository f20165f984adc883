"""A run killed with SIGKILL and started again ends as if it had never been stopped, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli import contents, refused, stofm, succeed, write_yaml
from interrupted import RUNS
from omegaconf import OmegaConf

from pretrain.run_log import read_run_log

STAGES = ("encoder", "se2", "joint")
KILLED = [name for name in RUNS if name != "never"]


@pytest.fixture(scope="module")
def config(tiny_run_config, tmp_path_factory) -> Path:
    """8 steps of each stage, a checkpoint every third; virtual cells are refreshed after step 4 of the joint stage."""
    settings = tiny_run_config.model_dump(mode="json") | {"log_every": 1, "save_every": 3, "n_checkpoints": 1}
    for stage in ("encoder_stage", "se2_stage"):
        settings[stage] |= {"max_steps": 8, "epochs": 8.0}
    settings["encoder_stage"]["cells_per_micro_batch"] = 16
    settings["joint_stage"] = {"max_steps": 8, "epochs": 8.0, "refresh_every": 4, "tokens_per_chunk": 1000}
    return write_yaml(tmp_path_factory.mktemp("resume") / "train.yaml", settings)


@pytest.fixture(scope="module")
def runs(config) -> Path:
    """The folder of all runs, killed at the moments that `RUNS` says; each went to its end. `screen.txt` is what they all said."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("interrupted.py"), config, config.parent],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (config.parent / "screen.txt").write_text(done.stdout, encoding="utf-8")
    return config.parent


def measured(run: Path) -> list[dict]:
    """The log without what a clock says."""
    return [{name: line[name] for name in ("stage", "step", "losses", "grad_norm", "lr")} for line in read_run_log(run / "losses.jsonl")]


def test_the_run_that_was_never_stopped_learns_in_all_stages(runs):
    lines = measured(runs / "never")
    assert [(line["stage"], line["step"]) for line in lines] == [(stage, step + 1) for stage in STAGES for step in range(8)]
    assert len({str(line["losses"]) for line in lines}) == 24


@pytest.mark.parametrize("name", KILLED)
def test_losses_are_those_of_a_run_that_was_never_stopped(runs, name):
    assert measured(runs / name) == measured(runs / "never")


@pytest.mark.parametrize("name", KILLED)
def test_the_model_is_the_same_bytes(runs, name):
    assert contents(runs / name / "model") == contents(runs / "never" / "model")
    assert contents(runs / name / "cell_encoder") == contents(runs / "never" / "cell_encoder")


def test_a_stage_that_goes_on_from_a_checkpoint_does_not_make_its_start_again(runs):
    assert (runs / "screen.txt").read_text(encoding="utf-8").count("SE(2) transformer: start") == len(RUNS)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("name", KILLED)
def test_nothing_half_written_stays_in_sight(runs, name):
    assert visible(runs / name / "checkpoints") == ["encoder-00000008", "joint-00000008", "se2-00000008"]
    assert visible(runs / name) == visible(runs / "never")


def test_a_finished_run_started_again_does_nothing(runs, config):
    before = contents(runs / "never")
    assert "is complete" in succeed("train", config, f"out={runs / 'never'}")
    assert contents(runs / "never") == before


def test_a_stopped_run_is_not_gone_on_with_by_another_configuration(runs, config, tmp_path):
    assert stofm("train", config, f"out={tmp_path / 'run'}", "encoder_stage.max_steps=1", "se2_stage.max_steps=1", "joint_stage=null").code == 0
    (tmp_path / "run/model").rename(tmp_path / "gone")
    before = contents(tmp_path / "run")
    line = refused("train", config, f"out={tmp_path / 'run'}")
    assert f"output {tmp_path / 'run'}: found a run of another configuration; expected this one" in line
    assert contents(tmp_path / "run") == before


@pytest.mark.slow
def test_runs_killed_at_random_moments_of_every_stage_end_as_one_that_was_never_stopped(config, tmp_path_factory):
    folder, n_kills = tmp_path_factory.mktemp("random"), 20
    every_step = write_yaml(folder / "train.yaml", OmegaConf.to_container(OmegaConf.load(config)) | {"save_every": 1, "n_checkpoints": 2})
    words = [sys.executable, Path(__file__).with_name("interrupted.py"), every_step, folder, str(n_kills)]
    done = subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected, model = measured(folder / "never"), contents(folder / "never/model")
    for name in (f"{stage}-{number}" for stage in STAGES for number in range(n_kills)):
        assert measured(folder / name) == expected, name
        assert contents(folder / name / "model") == model, name
