"""What a cluster does to a run: it ends in one line and an exit code, the last checkpoint stands, and the same command goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from cli import refused, stofm, succeed, write_yaml

import pretrain.engine
from pretrain.objectives import SE2Objectives
from pretrain.run_log import RunLog, read_run_log


@pytest.fixture(scope="module")
def settings(tiny_run_config) -> dict:
    """4 steps of every stage, a checkpoint every second, a line every step."""
    stages = {"encoder_stage": {"max_steps": 4, "epochs": 8.0, "cells_per_micro_batch": 64}, "se2_stage": {"max_steps": 4, "epochs": 8.0},
              "joint_stage": {"max_steps": 4, "epochs": 8.0, "refresh_every": 2}}  # fmt: skip
    return tiny_run_config.model_dump(mode="json") | stages | {"log_every": 1, "save_every": 2, "watch_every": 2}


@pytest.fixture
def config(settings, tmp_path) -> Path:
    return write_yaml(tmp_path / "train.yaml", settings | {"out": str(tmp_path / "run")})


def at(monkeypatch, stage: str, step: int, happens) -> None:
    """Let something happen when a step is logged."""
    write = RunLog.write

    def then(self, found, done, *args, **kwargs):
        write(self, found, done, *args, **kwargs)
        if (found, done) == (stage, step):
            happens()

    monkeypatch.setattr(RunLog, "write", then)


@pytest.mark.parametrize(("number", "stage"), [(signal.SIGTERM, "encoder"), (signal.SIGUSR1, "joint")])
def test_a_signal_leaves_a_checkpoint_and_exit_code_75_and_the_run_goes_on(config, tmp_path, monkeypatch, number, stage):
    at(monkeypatch, stage, 1, lambda: os.kill(os.getpid(), number))
    outcome = stofm("train", config)
    monkeypatch.undo()
    assert outcome.code == 75
    assert f"{stage} stage: told to stop after step 2; a checkpoint was written" in outcome.stderr
    assert (tmp_path / f"run/checkpoints/{stage}-00000002/state.json").is_file()
    succeed("train", config)
    lines = read_run_log(tmp_path / "run/losses.jsonl")
    assert [(line["stage"], line["step"]) for line in lines] == [(name, step + 1) for name in ("encoder", "se2", "joint") for step in range(4)]
    for line in lines:
        assert {"cells_per_second", "tokens_per_second", "peak_share", "memory_mb", "data_wait_share", "seconds_left", "grad_norm", "lr"} <= set(line)
        assert ("effective_rank" in line) == (line["step"] % 2 == 0)
    assert sorted(path.name for path in (tmp_path / "run/tensorboard").iterdir()) == ["encoder", "joint", "se2"]


def test_a_loss_that_is_no_number_stops_the_run_before_the_update_and_names_the_records(config, tmp_path, monkeypatch):
    forward, calls = SE2Objectives.forward, []

    def nan_at_step_4(self, batch, *args, **kwargs):
        calls.append(batch)
        sums = forward(self, batch, *args, **kwargs)
        return sums if len(calls) < 4 else {**sums, "mcm": sums["mcm"] * torch.nan}

    monkeypatch.setattr(SE2Objectives, "forward", nan_at_step_4)
    line = refused("train", config, "joint_stage=null")
    assert "se2 stage, step 4: mcm is nan in records slice_" in line
    assert "Nothing was updated" in line
    state = json.loads((tmp_path / "run/checkpoints/se2-00000002/state.json").read_text())
    assert (state["step"], read_run_log(tmp_path / "run/losses.jsonl")[-1]["step"]) == (2, 3)
    monkeypatch.undo()
    succeed("train", config, "joint_stage=null")


@pytest.fixture
def own_corpus(tiny_corpus, tmp_path) -> Path:
    """A copy of the tiny corpus that a test may damage."""
    return shutil.copytree(tiny_corpus.folder, tmp_path / "corpus")


def damage_shards(corpus: Path) -> None:
    for shard in (corpus / "views/tokens").glob("*.tar"):
        data = bytearray(shard.read_bytes())
        data[3000::500] = bytes(byte ^ 1 for byte in data[3000::500])
        shard.write_bytes(data)


def lose_shards(corpus: Path) -> None:
    for shard in (corpus / "views/tokens").glob("*.tar"):
        shard.unlink()


@pytest.mark.parametrize(("harm", "said"), [(damage_shards, "bytes differ from those written"), (lose_shards, "is gone")])
def test_a_shard_that_is_damaged_or_lost_while_training_runs_is_named_and_nothing_is_skipped(config, tmp_path, own_corpus, monkeypatch, harm, said):
    made = pretrain.engine.Trackers
    monkeypatch.setattr(pretrain.engine, "Trackers", lambda *args, **kwargs: (harm(own_corpus), made(*args, **kwargs))[1])  # the view is open by then
    line = refused("train", config, f"corpus={own_corpus}", "joint_stage=null")
    assert "shard " in line
    assert said in line
    assert read_run_log(tmp_path / "run/losses.jsonl") == []


def test_a_run_is_not_gone_on_with_on_another_vocabulary(config, tmp_path):
    succeed("train", config, "joint_stage=null")
    (tmp_path / "run/model").rename(tmp_path / "gone")
    run = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps(run | {"vocabulary": "0" * 64}))
    assert "found a run of another vocabulary; expected this one" in refused("train", config, "joint_stage=null")
