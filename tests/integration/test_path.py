"""The whole path by the command line: slices to corpus, model, embeddings, regions, cell types and the table of scores."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from cli import contents, refused, succeed, write_yaml
from matplotlib.image import imread

from stofm.checkpoint import load_model

TINY_ENCODER = {"n_layers": 1, "width": 32, "n_heads": 2, "ffn_dim": 32}
TASKS = {"segment": "region", "annotate": "cell_type"}


@pytest.fixture(scope="module")
def walked(simulated_paths, tmp_path_factory) -> Path:
    """The folder in which all verbs ran, one after the other, on slices 0 to 2, the last held out of head fitting."""
    here = tmp_path_factory.mktemp("path")
    slices = [{"path": str(path), "labels": {"region": "region"}} for path in simulated_paths]
    scales = {"sub_slices": {"n_cells": 150}, "virtual_cells": {"cells_each": 40}}
    build = write_yaml(here / "build.yaml", {"out": str(here / "corpus"), "slices": slices[:2], "scales": scales})
    run = {"corpus": str(here / "corpus"), "out": str(here / "run"), "cell_encoder": TINY_ENCODER, "log_every": 1}
    train = write_yaml(here / "train.yaml", run | {"se2_transformer": {"n_layers": 2, "n_neighbors": 6}})
    tasks = [{"name": f"{task}s", "task": task, "slices": slices} for task in TASKS.values()]
    evaluate = write_yaml(
        here / "evaluate.yaml",
        {"model": str(here / "run/model"), "out": str(here / "evaluation"), "tasks": tasks, "allow_seen": ["slice_0", "slice_1"]},
    )

    succeed("check", *simulated_paths)
    succeed("build", build)
    succeed("train", train, "encoder_stage.max_steps=6", "se2_stage.max_steps=6")
    succeed("embed", *simulated_paths, "--model", here / "run/model", "--out", here / "embedded", "--keep-cell-embeddings")
    embedded = [here / "embedded" / path.name for path in simulated_paths]
    for verb, task in TASKS.items():
        succeed(verb, "fit", *embedded[:2], "--out", here / f"{task}_head")
        succeed(verb, "predict", embedded[2], "--head", here / f"{task}_head", "--out", here / f"predicted_{task}")
    succeed("evaluate", evaluate)
    return here


@pytest.mark.parametrize("number", range(3))
def test_a_slice_comes_back_with_an_embedding_for_every_cell_in_its_row(walked, simulated_paths, number):
    given, back = anndata.read_h5ad(simulated_paths[number]), anndata.read_h5ad(walked / f"embedded/slice_{number}.h5ad")
    for key in ("X_stofm", "X_stofm_cell"):
        assert back.obsm[key].shape == (400, 256)
        assert back.obsm[key].dtype == np.float32
        assert np.isfinite(back.obsm[key]).all()
    assert back.obs_names.tolist() == given.obs_names.tolist()
    np.testing.assert_array_equal(back.X.toarray(), given.X.toarray())
    np.testing.assert_array_equal(back.obsm["spatial"], given.obsm["spatial"])
    assert set(back.obs["stofm_status"]) == {"embedded"}
    assert back.obs.drop(columns="stofm_status").equals(given.obs)


def test_an_embedded_slice_says_what_made_it(walked):
    receipt = anndata.read_h5ad(walked / "embedded/slice_2.h5ad").uns["stofm"]
    assert receipt["weights_sha256"] == load_model(walked / "run/model").weights_sha256
    assert receipt["n_embedded"] == 400
    assert json.loads(receipt["scales"])["sub_slices"]["n_cells"] == 150
    assert {"vocabulary_sha256", "gene_tables", "um_per_unit", "stofm_version"} <= set(receipt)


@pytest.mark.parametrize("task", TASKS.values())
def test_predictions_are_the_most_probable_of_classes_that_sum_to_one(walked, task):
    obs = anndata.read_h5ad(walked / f"predicted_{task}/slice_2.h5ad").obs
    classes = obs[f"stofm_{task}"].cat.categories
    proba = obs[[f"stofm_{task}_probability_{name}" for name in classes]].to_numpy()
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-5)
    assert obs[f"stofm_{task}"].tolist() == classes[proba.argmax(axis=1)].tolist()
    np.testing.assert_array_equal(obs[f"stofm_{task}_probability"], proba.max(axis=1))


ROWS = ["majority", "PCA", "PCA + neighbour mean", "cell encoder, not adapted", "cell encoder", "cell encoder + neighbour mean",
        "SToFM, no virtual cells", "SToFM"]  # fmt: skip
PICTURES = [
    "run/losses.png",
    *(f"predicted_{task}/slice_2_{task}.png" for task in TASKS.values()),
    *(f"evaluation/{task}s_slice_{number}.png" for task in TASKS.values() for number in range(3)),
]


@pytest.mark.parametrize("picture", PICTURES)
def test_pictures_show_something(walked, picture):
    pixels = imread(walked / picture)[::5, ::5, :3].reshape(-1, 3)
    assert (pixels < 0.95).any(axis=-1).mean() > 0.01
    assert len(np.unique(pixels, axis=0)) > 3


def test_the_table_has_the_baselines_beside_the_model(walked):
    text, page = (walked / "evaluation/table.md").read_text(), (walked / "evaluation/table.html").read_text()
    for row in ROWS:
        assert text.count(f"\n| {row} | ") == 2
        assert page.count(f"<td>{row}</td>") == 2
    assert "not available" not in text
    assert "2 of 3 slices were in the pretraining corpus" in text
    summary = pd.read_csv(walked / "evaluation/table.csv").set_index(["task", "features"])
    assert len(summary) == 2 * len(ROWS)
    assert (summary["macro_f1_low"] <= summary["macro_f1_high"]).all()
    assert (summary["seconds"] > 0).all()
    scores = pd.read_csv(walked / "evaluation/scores.csv")
    assert len(scores) == 2 * 3 * len(ROWS)
    assert scores.groupby(["task", "features"])["macro_f1"].mean().to_dict() == pytest.approx(summary["macro_f1"].to_dict(), abs=1e-3)
    assert "precision,recall,f1" in (walked / "evaluation/per_class.csv").read_text()


def test_the_evaluation_is_not_overwritten_unless_asked(walked):
    before = contents(walked / "evaluation")
    assert "found an evaluation; expected none" in refused("evaluate", walked / "evaluate.yaml")
    assert contents(walked / "evaluation") == before


@pytest.mark.parametrize("folder", ["corpus", "run", "evaluation"])
def test_the_resolved_configuration_is_kept_beside_the_result(walked, folder):
    assert "seed:" in (walked / folder / "config.yaml").read_text()


@pytest.mark.parametrize("verb", ["build", "train"])
def test_a_finished_command_started_again_does_nothing(walked, verb):
    folder = walked / {"build": "corpus", "train": "run"}[verb]
    before = contents(folder)
    overrides = ["encoder_stage.max_steps=6", "se2_stage.max_steps=6"] if verb == "train" else []
    assert "is complete" in succeed(verb, walked / f"{verb}.yaml", *overrides)
    assert contents(folder) == before


def test_a_cell_without_counts_keeps_its_row_and_says_why(walked, simulated_paths, tmp_path):
    table = anndata.read_h5ad(simulated_paths[2])
    table.X = table.X.multiply(np.isin(np.arange(400), [3, 17], invert=True)[:, None]).tocsr()
    table.write_h5ad(tmp_path / "gaps.h5ad")
    succeed("embed", tmp_path / "gaps.h5ad", "--model", walked / "run/model", "--out", tmp_path / "embedded")
    succeed("segment", "predict", tmp_path / "embedded/gaps.h5ad", "--head", walked / "region_head", "--out", tmp_path / "predicted")
    back = anndata.read_h5ad(tmp_path / "predicted/gaps.h5ad")
    is_gap = np.isin(np.arange(400), [3, 17])
    np.testing.assert_array_equal(np.isnan(back.obsm["X_stofm"]), np.repeat(is_gap[:, None], 256, axis=1))
    assert set(back.obs["stofm_status"][is_gap]) == {"no counts"}
    np.testing.assert_array_equal(back.obs["stofm_region"].isna(), is_gap)
    np.testing.assert_array_equal(back.obs["stofm_region_probability"].isna(), is_gap)
