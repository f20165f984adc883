"""The training split is trained on, the validation split is measured, and the best checkpoint by it is kept."""

from __future__ import annotations

import pytest
from cli import succeed, write_yaml
from synth import corpus_config

from corpus.build import build_corpus
from corpus.splits import SplitConfig
from pretrain.run_log import read_run_log
from pretrain.stages import records_of


@pytest.fixture(scope="module")
def corpus(simulated_paths, tmp_path_factory):
    """Slice 0 to train on, slice 1 to validate on, slice 2 to test."""
    fixed = {"slice_0": "train", "slice_1": "validation", "slice_2": "test"}
    config = corpus_config(simulated_paths, tmp_path_factory.mktemp("split") / "corpus")
    slices = [spec.model_copy(update={"labels": {"region": "region"}}) for spec in config.slices]
    return build_corpus(config.model_copy(update={"splits": SplitConfig(fixed=fixed), "slices": slices}))


def test_records_are_chosen_by_the_split_of_their_slice(corpus):
    view = corpus.token_view()
    splits = {entry["slice_id"]: entry["split"] for entry in corpus.manifest["slices"]}
    chosen = {split: {view.places[record].slice_id for record in records_of(view, splits, split)} for split in ("train", "validation", "test")}
    assert chosen == {"train": {"slice_0"}, "validation": {"slice_1"}, "test": {"slice_2"}}


def test_validation_losses_and_probe_are_logged_and_the_best_checkpoint_is_kept(corpus, tiny_run_config, tmp_path):
    stage = {"max_steps": 4, "epochs": 8.0}
    settings = tiny_run_config.model_dump(mode="json") | {
        "corpus": str(corpus.folder), "out": str(tmp_path / "run"), "log_every": 1, "save_every": 2, "n_checkpoints": 1, "probe_every": 4,
        "encoder_stage": {**stage, "cells_per_micro_batch": 64}, "se2_stage": stage, "joint_stage": {**stage, "refresh_every": 2},
    }  # fmt: skip
    succeed("train", write_yaml(tmp_path / "train.yaml", settings))
    lines = read_run_log(tmp_path / "run/losses.jsonl")
    for line in lines:
        assert ("validation" in line) == (line["step"] in (2, 4))
        assert set(line.get("validation", line["losses"])) == set(line["losses"])
    probes = [line["probe"] for line in lines if "probe" in line]
    assert len(probes) == 2, "the SE(2) and the joint stage; the encoder stage has no transformer yet"
    assert all(0 <= score <= 1 for probe in probes for score in probe.values())
    assert {"region/cell_repr", "region/cell_embeddings"} <= set(probes[0])
