"""A run killed with SIGKILL and started again ends as if it had never been stopped, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli import contents, refused, stofm, succeed, write_yaml
from interrupted import MOMENTS

from pretrain.run_log import read_run_log

KILLED = [moment for moment in MOMENTS if moment != "never"]


@pytest.fixture(scope="module")
def config(tiny_run_config, tmp_path_factory) -> Path:
    """8 steps of each stage, a checkpoint every third."""
    settings = tiny_run_config.model_dump(mode="json") | {"log_every": 1, "save_every": 3, "n_checkpoints": 1}
    for stage in ("encoder_stage", "se2_stage"):
        settings[stage] |= {"max_steps": 8, "epochs": 8.0}
    return write_yaml(tmp_path_factory.mktemp("resume") / "train.yaml", settings)


@pytest.fixture(scope="module")
def runs(config) -> dict[str, Path]:
    """One run per moment at which it was killed, and one never killed; each went to its end."""
    outs = {moment: config.parent / moment.replace(" ", "_") for moment in MOMENTS}
    words = [word for moment, out in outs.items() for word in (str(out), moment)]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("interrupted.py"), config, *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return outs


def measured(run: Path) -> list[dict]:
    """The log without what a clock says."""
    return [{name: line[name] for name in ("stage", "step", "losses", "grad_norm", "lr")} for line in read_run_log(run / "losses.jsonl")]


def test_the_run_that_was_never_stopped_learns_in_both_stages(runs):
    lines = measured(runs["never"])
    assert [(line["stage"], line["step"]) for line in lines] == [(stage, step + 1) for stage in ("encoder", "se2") for step in range(8)]
    assert len({str(line["losses"]) for line in lines}) == 16


@pytest.mark.parametrize("moment", KILLED)
def test_losses_are_those_of_a_run_that_was_never_stopped(runs, moment):
    assert measured(runs[moment]) == measured(runs["never"])


@pytest.mark.parametrize("moment", KILLED)
def test_the_model_is_the_same_bytes(runs, moment):
    assert contents(runs[moment] / "model") == contents(runs["never"] / "model")
    assert contents(runs[moment] / "cell_encoder") == contents(runs["never"] / "cell_encoder")


@pytest.mark.parametrize("moment", KILLED)
def test_nothing_half_written_stays_in_sight(runs, moment):
    names = sorted(path.name for path in (runs[moment] / "checkpoints").iterdir() if not path.name.startswith("."))
    assert names == ["encoder-00000008", "se2-00000008"]
    assert sorted(path.name for path in runs[moment].iterdir() if not path.name.startswith(".")) == sorted(
        path.name for path in runs["never"].iterdir()
    )


def test_a_finished_run_started_again_does_nothing(runs, config):
    before = contents(runs["never"])
    assert "is complete" in succeed("train", config, f"out={runs['never']}")
    assert contents(runs["never"]) == before


def test_a_stopped_run_is_not_gone_on_with_by_another_configuration(runs, config, tmp_path):
    assert stofm("train", config, f"out={tmp_path / 'run'}", "encoder_stage.max_steps=1", "se2_stage.max_steps=1").code == 0
    (tmp_path / "run/model").rename(tmp_path / "gone")
    before = contents(tmp_path / "run")
    line = refused("train", config, f"out={tmp_path / 'run'}")
    assert f"output {tmp_path / 'run'}: found a run of another configuration; expected this one" in line
    assert contents(tmp_path / "run") == before
