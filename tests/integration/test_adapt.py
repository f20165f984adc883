"""`stofm adapt`: a model goes on learning on new slices, is measured before and after, and stays a model like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from cli import contents, refused, succeed
from safetensors.torch import load_file

from corpus.gene_ids import load_gene_tables
from corpus.readers import read_slice
from corpus.simulate import SimulationConfig, simulate_slices
from corpus.slice import SliceSpec
from corpus.store import Corpus
from pretrain.run_log import read_run_log, steps_of
from stofm.checkpoint import load_model

SHORT = ["--set", "head_steps=3", "--set", "encoder_stage.max_steps=4", "--set", "se2_stage.max_steps=4"]
STAGES = ["encoder_heads", "encoder", "se2_heads", "se2"]


@pytest.fixture(scope="module")
def base(tiny_run) -> Path:
    return tiny_run / "model"


@pytest.fixture(scope="module")
def new_slice(tmp_path_factory) -> Path:
    """A slice of the same world that the model never saw."""
    path = tmp_path_factory.mktemp("new") / "new.h5ad"
    *_, table = simulate_slices(SimulationConfig(n_slices=4, n_cells=400, panel_sizes=[60, 90]))
    table.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def adapted(base, new_slice, simulated_paths, tmp_path_factory) -> Path:
    """All weights trained; tests only read it."""
    out = tmp_path_factory.mktemp("adapted") / "full"
    succeed("adapt", new_slice, "--reference", simulated_paths[0], "--model", base, "--out", out, *SHORT)
    return out


@pytest.fixture(scope="module")
def adapters(base, new_slice, tmp_path_factory) -> Path:
    """Adapters trained, not merged; tests only read it."""
    out = tmp_path_factory.mktemp("adapted") / "lora"
    succeed("adapt", new_slice, "--lora", "--model", base, "--out", out, *SHORT)
    return out


def test_the_result_is_a_model_that_names_what_it_was_adapted_from(adapted, base, new_slice):
    before, after = load_model(base), load_model(adapted / "model")
    assert after.meta.trained_on["adapted_from"] == before.weights_sha256
    assert after.weights_sha256 != before.weights_sha256
    assert after.meta.trained_on["vocabulary"] == before.meta.trained_on["vocabulary"]
    assert after.meta.trained_on["inputs"].items() > before.meta.trained_on["inputs"].items(), "what the first model saw stays seen"
    for name in ("gene_vocab.csv", "gene_tables.json", "scales.json"):
        assert after.meta.files[name] == before.meta.files[name]
    assert f"adapted from the weights `{before.weights_sha256}`" in (adapted / "model/README.md").read_text()
    assert "adapted from weights " + before.weights_sha256[:12] in succeed("model", "show", adapted / "model")


def test_an_adapted_model_embeds(adapted, new_slice, tmp_path):
    assert "400 of 400 cells embedded" in succeed("embed", new_slice, "--model", adapted / "model", "--out", tmp_path / "embedded")


def test_heads_are_learned_first_and_the_model_stays_as_it_is(adapted, base):
    assert list(steps_of(read_run_log(adapted / "run/losses.jsonl"))) == STAGES
    of_heads = load_file(adapted / "run/checkpoints/se2_heads-00000003/weights.safetensors")
    own = load_file(base / "se2_transformer.safetensors")
    torch.testing.assert_close({name: of_heads[f"transformer.{name}"] for name in own}, own, rtol=0, atol=0)
    after = load_file(adapted / "model/se2_transformer.safetensors")
    assert any(not torch.equal(after[name], own[name]) for name in own)


def test_the_report_has_every_number_before_and_after(adapted):
    report = json.loads((adapted / "report.json").read_text())
    assert report["losses"]["before"].keys() == report["losses"]["after"].keys() == {"held-out blocks", "reference"}
    for when in ("before", "after"):
        for losses in report["losses"][when].values():
            assert losses.keys() == {"mgm", "contrastive", "mcm", "pdr", "context", "own"}
            assert all(np.isfinite(value) for value in losses.values())
        for tasks in report["probes"][when].values():
            assert tasks.keys() == {"region", "cell_type"}
            assert all(0 < value <= 1 for task in tasks.values() for value in task.values())
    text = (adapted / "report.md").read_text()
    for words in ("| held-out blocks | mgm |", "| reference | mcm |", "| reference | region, SToFM |", "is what the adaptation forgot"):
        assert words in text


def test_held_out_cells_are_not_trained_on(adapted, new_slice):
    training, held_out = (Corpus(adapted / "corpora" / name) for name in ("training", "held_out"))
    whole = read_slice(SliceSpec(path=str(new_slice)))
    places = [corpus.truth("new").coords_um for corpus in (training, held_out)]
    assert [len(part) for part in places] == [320, 80]
    assert {tuple(place) for part in places for place in part.tolist()} == {tuple(place) for place in whole.coords_um.tolist()}
    assert training.vocab.sha256 == held_out.vocab.sha256


def test_a_reference_is_not_trained_on(adapted):
    assert Corpus(adapted / "corpora/training").slice_ids == ["new"]
    assert Corpus(adapted / "corpora/reference").slice_ids == ["slice_0"]


def rounded(report: bytes) -> dict:
    """A report without the last digits of what was measured, which follow where arrays lie in memory."""
    return json.loads(report, parse_float=lambda number: round(float(number), 5))


def test_an_adaptation_that_lost_its_later_half_ends_the_same(adapted, base, new_slice, simulated_paths):
    report = (adapted / "report.json").read_bytes()  # names the weights
    for lost in ("model", "run/after", "run/checkpoints/encoder-00000004", "run/checkpoints/se2-00000004"):
        shutil.rmtree(adapted / lost)
    succeed("adapt", new_slice, "--reference", simulated_paths[0], "--model", base, "--out", adapted, *SHORT)
    assert load_model(adapted / "model").weights_sha256 == json.loads(report)["weights_sha256"]
    assert rounded((adapted / "report.json").read_bytes()) == rounded(report)


def test_lora_leaves_adapters_alone_until_they_are_merged(adapters, base, new_slice):
    assert not (adapters / "model").exists()
    sizes = {stage: (adapters / "run/adapters" / stage / "adapter_model.safetensors").stat().st_size for stage in ("encoder", "se2")}
    assert sizes["se2"] < (base / "se2_transformer.safetensors").stat().st_size / 3
    report = json.loads((adapters / "report.json").read_text())
    before = contents(adapters / "run/checkpoints")
    assert f"model: {adapters / 'model'}" in succeed("adapt", new_slice, "--lora", "--merge", "--model", base, "--out", adapters, *SHORT)
    merged = load_model(adapters / "model")
    assert contents(adapters / "run/checkpoints") == before, "nothing was trained again"
    assert merged.weights_sha256 == report["weights_sha256"]
    own, after = load_file(base / "se2_transformer.safetensors"), load_file(adapters / "model/se2_transformer.safetensors")
    assert own.keys() == after.keys()
    assert torch.equal(own["mask_embedding"], after["mask_embedding"])
    assert not torch.equal(own["layers.0.fc1.weight"], after["layers.0.fc1.weight"])


@pytest.fixture
def words(base, new_slice, tmp_path) -> list:
    return ["adapt", new_slice, "--model", base, "--out", tmp_path / "out"]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--merge"], "--merge: found no --lora; expected both"),
        (["--set", "hold_out=0"], "hold_out: found 0 and no --reference; expected something to measure on"),
        (["--set", "head_step=3"], "--set: unknown key 'head_step'; expected one of"),
        (["--set", "head_steps"], "override 'head_steps': found no '='"),
        (["--set", "rank=0"], "--set: rank: Input should be greater than or equal to 1"),
        (["--reference", "none.h5ad"], "slice 'none' (none.h5ad): no such file"),
        (["--set", "hold_out=0.01"], "found 400 cells, 4 of them to be held out; expected at least 10"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(words, more, line):
    assert line in refused(*words, *more)
    assert not (words[-1] / "model").exists()


def test_several_processes_are_refused(words, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "launch: found 2 processes; expected one" in refused(*words)


def test_a_slice_without_genes_of_the_model_is_refused(words, new_slice, tmp_path):
    table = anndata.read_h5ad(new_slice)
    far_from_the_pool = sorted(set(load_gene_tables().human_of_mouse.values()))[-table.n_vars :]  # simulated genes are the first
    table.var = table.var[[]].set_index(pd.Index(far_from_the_pool))
    table.write_h5ad(tmp_path / "foreign.h5ad")
    words[1] = tmp_path / "foreign.h5ad"
    assert "no cell of any slice expresses a gene of the vocabulary" in refused(*words)


def test_an_output_of_another_adaptation_is_left_alone(adapted, base, new_slice, simulated_paths):
    before = contents(adapted / "run")
    command = ["adapt", new_slice, "--reference", simulated_paths[0], "--model", base, "--out", adapted, *SHORT]
    assert "found a run of another configuration; expected this one" in refused(*command, "--set", "head_lr=0.01")
    assert contents(adapted / "run") == before
