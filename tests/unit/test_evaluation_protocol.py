"""The protocol of an evaluation: unlabelled cells in the features and not in the score, classes that cannot be learned named, leaks refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from downstream.evaluate import EvaluateConfig, TaskConfig, evaluate
from downstream.splits import SplitConfig
from stofm.errors import ConfigError, DataError


def config_of(paths: list[Path], model: Path, out: Path, *, by: str = "slice", **settings: object) -> EvaluateConfig:
    task = TaskConfig(name="regions", task="region", slices=[{"path": str(path)} for path in paths], split=SplitConfig(by=by))  # type: ignore[list-item, arg-type]
    return EvaluateConfig(model=str(model), out=str(out), tasks=[task], **{"allow_seen": True, **settings})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def relabelled(simulated_paths, tmp_path_factory) -> list[Path]:
    """Slice 0 without the labels of every third cell and without one class; slice 2 as it is."""
    folder = tmp_path_factory.mktemp("relabelled")
    table = anndata.read_h5ad(simulated_paths[0])
    labels = table.obs["region"].astype(object)
    labels[::3] = None
    labels[labels == sorted(set(labels.dropna()))[0]] = None
    table.obs["region"] = pd.Categorical(labels)
    table.write_h5ad(folder / "slice_0.h5ad")
    return [folder / "slice_0.h5ad", simulated_paths[2]]


@pytest.fixture(scope="module")
def scores(relabelled, tiny_run, tmp_path_factory) -> tuple[pd.DataFrame, Path]:
    model, out = tmp_path_factory.mktemp("alone") / "model", tmp_path_factory.mktemp("evaluated") / "out"
    shutil.copytree(tiny_run / "model", model)  # without the first encoder of its run
    evaluate(config_of(relabelled, model, out))
    return pd.read_csv(out / "scores.csv", keep_default_na=False), out


def test_only_labelled_cells_are_scored(scores, relabelled):
    per_class = pd.read_csv(scores[1] / "per_class.csv")
    n_scored = per_class[per_class["slice"] == "slice_0"].groupby("features")["n_cells"].sum()
    assert set(n_scored) == {int(anndata.read_h5ad(relabelled[0]).obs["region"].notna().sum())}


def test_a_class_that_only_the_held_out_slice_has_is_named(scores, simulated_paths):
    (missed,) = {name for name in scores[0]["classes_without_training"] if name}
    assert missed in set(anndata.read_h5ad(simulated_paths[2]).obs["region"])
    assert f"no training cell has the class {missed}" in (scores[1] / "table.md").read_text()


def test_the_majority_row_knows_one_class(scores):
    rows = scores[0][scores[0]["features"] == "majority"]
    assert (rows["ari"].astype(float) == 0).all()
    assert (rows["macro_f1"].astype(float) < 0.5).all()


def test_a_slice_of_the_corpus_is_refused_unless_named(simulated_paths, tiny_run, tmp_path):
    with pytest.raises(ConfigError, match="3 slices of the evaluation were in its corpus: slice_0, slice_1, slice_2"):
        evaluate(config_of(simulated_paths, tiny_run / "model", tmp_path / "out", allow_seen=False))
    with pytest.raises(ConfigError, match="1 slices of the evaluation were in its corpus: slice_1"):
        evaluate(config_of(simulated_paths, tiny_run / "model", tmp_path / "out", allow_seen=["slice_0", "slice_2"]))
    assert not (tmp_path / "out").exists()


def test_one_slice_can_be_evaluated_by_blocks_only(simulated_paths, tiny_run, tmp_path):
    with pytest.raises(DataError, match="task regions: splits by slice: found no training cells beside 'slice_0'"):
        evaluate(config_of(simulated_paths[:1], tiny_run / "model", tmp_path / "out"))


def test_what_cannot_be_made_is_a_row_with_the_reason(scores):
    assert "| cell encoder, not adapted | not available: no folder" in (scores[1] / "table.md").read_text()
    summary = pd.read_csv(scores[1] / "table.csv").set_index("features")
    assert np.isnan(summary.loc["cell encoder, not adapted", "macro_f1"])
    assert (summary["macro_f1"].drop("cell encoder, not adapted") > 0).all()


def test_an_encoder_that_its_run_left_as_it_was_is_not_scored_twice(relabelled, tiny_run, tmp_path):
    config = config_of(relabelled, tiny_run / "model", tmp_path / "out")
    evaluate(config.model_copy(update={"encoder_start": str(tiny_run / "model" / "cell_encoder")}))
    assert "| cell encoder, not adapted | not available: the run did not adapt it" in (tmp_path / "out" / "table.md").read_text()
