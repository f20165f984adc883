"""Processes that share a model (FSDP2) train what one process trains; each holds its part, and a run goes on sharded or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli import refused, succeed, write_yaml
from safetensors.torch import load_file
from synth import corpus_config

from corpus.build import build_corpus
from corpus.splits import SplitConfig
from downstream.embedding import load_embedder
from pretrain.launch import make_accelerator
from pretrain.run_log import read_run_log
from stofm.errors import ConfigError

HERE = Path(__file__).parent
TORCHRUN = [Path(sys.executable).with_name("torchrun"), "--standalone", "--no-python", "--nproc_per_node"]
CHECKPOINTS = ["encoder-00000004", "joint-00000003", "se2-00000004"]


@pytest.fixture(scope="module")
def config(simulated_paths, tiny_run_config, tmp_path_factory) -> Path:
    """Three stages, in which the first process alone validates, watches and probes; it and the other have different numbers of chunks."""
    here = tmp_path_factory.mktemp("sharding")
    of_corpus = corpus_config(simulated_paths, here / "corpus")
    slices = [spec.model_copy(update={"labels": {"region": "region"}}) for spec in of_corpus.slices]
    splits = SplitConfig(fixed={"slice_0": "train", "slice_1": "validation", "slice_2": "train"})
    corpus = build_corpus(of_corpus.model_copy(update={"splits": splits, "slices": slices}))
    settings = tiny_run_config.model_dump(mode="json") | {
        "corpus": str(corpus.folder), "sharding": "fsdp2", "log_every": 1, "watch_every": 1, "probe_every": 2, "n_validation": 4, "n_checkpoints": 1,
    }  # fmt: skip
    stage = {"max_steps": 4, "epochs": 64.0, "n_micro_batches": 4, "optim": {"lr": 1e-6}}  # rounding, which differs, then grows little
    settings["encoder_stage"], settings["se2_stage"] = {**stage, "cells_per_micro_batch": 64}, stage
    settings["joint_stage"] = {**stage, "max_steps": 3, "refresh_every": 2, "tokens_per_chunk": 1000}
    return write_yaml(here / "train.yaml", settings)


@pytest.fixture(scope="module")
def one(config) -> Path:
    """The run of one process, which shares with nobody."""
    succeed("train", config, f"out={config.parent / 'one'}")
    return config.parent / "one"


def launched(n: int, *words: object) -> subprocess.CompletedProcess[str]:
    command = [*([*TORCHRUN, str(n)] if n > 1 else []), sys.executable, *words]
    return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900, check=False)


@pytest.fixture(scope="module")
def two(config) -> Path:
    """The run of two processes; notes of what they held lie beside the configuration."""
    done = launched(2, HERE / "sharded.py", config.parent, "train", config, f"out={config.parent / 'two'}")
    assert done.returncode == 0, done.stderr
    return config.parent / "two"


def assert_same_losses(run: Path, expected: Path) -> None:
    found, lines = (read_run_log(folder / "losses.jsonl") for folder in (run, expected))
    assert [(line["stage"], line["step"]) for line in found] == [(line["stage"], line["step"]) for line in lines]
    for mine, theirs in zip(found, lines, strict=True):
        assert mine["losses"] == pytest.approx(theirs["losses"], rel=1e-6, abs=1e-6)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)


@pytest.mark.slow
def test_two_sharded_processes_have_the_losses_of_one(one, two):
    assert_same_losses(two, one)
    assert load_embedder(two / "model").vocab.sha256 == load_embedder(one / "model").vocab.sha256


@pytest.mark.slow
def test_what_the_first_process_measures_alone_is_what_one_process_measures(one, two):
    for mine, theirs in zip(*(read_run_log(run / "losses.jsonl") for run in (two, one)), strict=True):
        assert [mine["effective_rank"], mine["spread"]] == pytest.approx([theirs["effective_rank"], theirs["spread"]], rel=1e-4)
        assert mine.get("validation", {}) == pytest.approx(theirs.get("validation", {}), rel=1e-6, abs=1e-6)
        assert mine.get("probe", {}) == pytest.approx(theirs.get("probe", {}), abs=0.02)
    assert sum("validation" in line for line in read_run_log(two / "losses.jsonl")) == 3
    assert sum("probe" in line for line in read_run_log(two / "losses.jsonl")) == 3


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["encoder", "se2", "joint"])
def test_each_process_holds_half_of_weights_gradients_and_moments(two, stage):
    of_rank = [[json.loads(line) for line in (two.parent / f"held-{rank}.jsonl").read_text().splitlines()] for rank in range(2)]
    last, others = ([line for line in lines if line["stage"] == stage][-1] for lines in of_rank)
    for name, times in (("weights", 1), ("gradients", 1), ("moments", 2)):
        assert last[name] + others[name] == times * last["whole"], "nothing is held twice"
        assert last[name] == pytest.approx(times * last["whole"] / 2, rel=0.05)
    assert (last["beside"], others["beside"]) == (0, 0), "the model of which they share a copy has no weights meanwhile"


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("file", ["weights", "optimizer"])
def test_a_checkpoint_is_that_of_one_process(one, two, checkpoint, file):
    found, expected = (load_file(run / "checkpoints" / checkpoint / f"{file}.safetensors") for run in (two, one))
    assert list(found) == list(expected)
    atol = {"weights": 1e-5, "optimizer": 1e-6}[file]  # AdamW moves a weight by the rate also where its gradient is rounding alone
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


@pytest.mark.slow
def test_a_run_goes_on_sharded_by_one_process_and_by_ddp(config, one):
    """Told to stop by SIGTERM in the first step of every stage, a run ends the second with a checkpoint."""
    run = config.parent / "changing"
    for n, sharding, stage in ((2, "fsdp2", "encoder"), (1, "fsdp2", "se2"), (2, "fsdp2", "joint"), (2, "none", "")):
        done = launched(n, HERE / "stopping.py", stage, "1", "train", config, f"out={run}", f"sharding={sharding}")
        assert (done.returncode == 0) == (stage == ""), done.stderr
        assert (run / f"checkpoints/{stage}-00000002").is_dir() == (stage != "")
    assert_same_losses(run, one)


def test_a_sharded_stage_is_not_compiled(tiny_run_config, tmp_path):
    config = write_yaml(tmp_path / "train.yaml", tiny_run_config.model_dump(mode="json"))
    said = refused("train", config, f"out={tmp_path / 'run'}", "sharding=fsdp2", "se2_stage.compile=true")
    assert "se2_stage.compile: found true with `sharding: fsdp2`; expected false" in said
    assert not (tmp_path / "run").exists()


def test_the_sharding_of_accelerate_itself_is_refused(tiny_run_config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"launch: found FSDP in the settings of accelerate; .* Set `sharding: fsdp2`"):
        make_accelerator(tiny_run_config)
