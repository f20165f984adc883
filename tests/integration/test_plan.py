"""`stofm plan` foresees what the trainer then does: steps and cells exactly, disk at most, and it starts nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli import refused, succeed, write_yaml

from pretrain.devices import DEVICES, device_named
from pretrain.plan import disk_gb
from pretrain.run_log import read_run_log, steps_of


@pytest.fixture(scope="module")
def config(tiny_run_config, tmp_path_factory) -> Path:
    """The settings of the tiny run, which is finished."""
    return write_yaml(tmp_path_factory.mktemp("plan") / "train.yaml", tiny_run_config.model_dump(mode="json"))


def planned(*words: object) -> dict:
    return json.loads(succeed("plan", *words, "--json"))


@pytest.fixture(scope="module")
def of_tiny_run(config, tiny_run) -> dict:
    return planned(config)


def test_steps_are_those_that_the_trainer_took(of_tiny_run, tiny_run):
    assert {one["stage"]: one["steps"] for one in of_tiny_run["stages"]} == steps_of(read_run_log(tiny_run / "losses.jsonl"))


def test_facts_of_a_run_stand_beside_its_plan(of_tiny_run):
    for one in of_tiny_run["stages"]:
        assert one["fact"]["steps"] == one["steps"]
        assert one["fact"]["cells"] == pytest.approx(one["cells"], rel=0.15), "chunks and sub-slices differ by a few cells"
        assert one["fact"]["hours"] > 0
        assert one["fact"]["peak_share"] > 0
    assert of_tiny_run["disk_gb_used"] <= of_tiny_run["disk_gb"]


def test_disk_is_enough_for_the_run_and_not_wildly_more(of_tiny_run, tiny_run):
    assert disk_gb(tiny_run) <= of_tiny_run["disk_gb"] < 20 * disk_gb(tiny_run)


def test_a_plan_starts_nothing_and_has_no_facts(config, tmp_path):
    report = planned(config, f"out={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()
    assert report["disk_gb_used"] is None
    assert all(one["fact"] is None for one in report["stages"])


def test_what_is_asked_for_twice_costs_twice(config, tmp_path):
    out = f"out={tmp_path / 'run'}"
    once, twice = (planned(config, out, f"se2_stage.max_steps={steps}", "se2_stage.epochs=80")["stages"][1] for steps in (4, 8))
    for name in ("steps", "cells", "tokens", "flops"):
        assert twice[name] == pytest.approx(2 * once[name])
    assert twice["memory_gb"] == once["memory_gb"]


def test_two_devices_take_half_the_time_of_one(config):
    words = [config, "encoder_stage.n_micro_batches=2", "se2_stage.n_micro_batches=2", "--device", "l4"]
    assert planned(*words, "--devices", 2)["hours"] == pytest.approx(planned(*words)["hours"] / 2)


def test_devices_that_share_a_model_need_less_memory_each(config, tmp_path):
    divided = [f"{stage}_stage.n_micro_batches=8" for stage in ("encoder", "se2", "joint")]
    words = [config, f"out={tmp_path / 'run'}", "joint_stage.max_steps=4", *divided]
    whole, parts = (planned(*words, f"sharding={name}", "--devices", 8)["stages"] for name in ("none", "fsdp2"))
    for mine, theirs in zip(parts, whole, strict=True):
        assert theirs["memory_gb"] - 16e-9 * theirs["n_trained"] < mine["memory_gb"] < theirs["memory_gb"]
    alone = planned(*words, "sharding=fsdp2")["stages"]
    assert [one["memory_gb"] for one in alone] == [one["memory_gb"] for one in whole]


def test_the_joint_stage_costs_more_than_the_transformer_alone(config, tmp_path):
    words = [config, f"out={tmp_path / 'run'}", "joint_stage.max_steps=4", "joint_stage.epochs=80"]
    stages = {one["stage"]: one for one in planned(*words)["stages"]}
    assert stages["joint"]["steps"] == stages["se2"]["steps"] == 4
    assert stages["joint"]["flops"] > stages["se2"]["flops"]
    assert stages["joint"]["n_trained"] > stages["se2"]["n_trained"]


def test_people_get_a_table(config):
    said = succeed("plan", config, "--device", "h100", "precision=bf16")
    for words in ("device: 1 x h100, 80 GB, 989 TFLOP/s (bf16; NVIDIA H100", "encoder", "se2", "plan", "fact", "disk: at most"):
        assert words in said


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_says_where_its_numbers_are_from(name):
    device = device_named(name, "no")
    assert device.source
    assert device.memory_gb > 0
    assert device.tflops.get("bf16", 1e9) > device.tflops["no"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--device", "abacus"], "--device: found 'abacus'; expected one of cpu, t4, "),
        (["--device", "t4", "precision=bf16"], "--device: t4 has no bf16; expected a precision that it has"),
        (["--share", "1.5"], "--share: found 1.5; expected a share of the peak"),
        (["--devices", "0"], "--devices: found 0; expected at least 1"),
        (["--devices", "3"], "encoder_stage.n_micro_batches: found 1 for 3 devices; expected a multiple of their number"),
        (["corpus=nowhere"], "nowhere: found no such folder; expected one of kind 'stofm-corpus/1'"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(config, words, line):
    assert line in refused("plan", config, *words)
