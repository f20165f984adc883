"""The notebooks of `docs/tutorials/` do what they promise, cell by cell, here on smaller slices; and what they show was made so."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

from stofm.checkpoint import load_model

FOLDER = Path(__file__).resolve().parents[2] / "docs/tutorials"
TUTORIALS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
SLICES = {"n_cells": 400, "panel_sizes": [60, 90]}  # of the world that the model of `tiny_run` was trained in
MACHINE = re.compile(r"(?<![.\w])/(home|root|tmp|work|mnt|Users|var|opt)/|[A-Z]:\\")  # begins of paths that mean nothing elsewhere


def code_cells(name: str) -> list[dict[str, Any]]:
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def walk(name: str, here: Path, **settings: object) -> dict[str, Any]:
    """Run a notebook in a folder with these settings, each of which it must have; returns the variables that it leaves."""
    first, *others = code_cells(name)
    assert first["metadata"]["tags"] == ["parameters"]
    variables: dict[str, Any] = {}
    exec("".join(first["source"]), variables)
    assert settings.keys() <= variables.keys()
    variables |= settings
    with contextlib.chdir(here):
        for number, cell in enumerate(others, start=2):
            exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), variables)
    return variables


@pytest.fixture(scope="module")
def annotating(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the notebook on cell types leaves; its pictures are in `here`."""
    here = tmp_path_factory.mktemp("annotating")
    return {"here": here, **walk("annotate_with_confidence", here, MODEL=tiny_run / "model", OUT="out", WORLD=SLICES)}


def test_regions_of_a_new_slice_are_found_far_beyond_chance(tiny_run, tmp_path):
    left = walk("embed_and_segment", tmp_path, MODEL=tiny_run / "model", OUT="out", WORLD=SLICES)
    assert left["found"].scores.macro_f1 > 0.5  # three regions: 0.33 by chance
    kept = anndata.read_h5ad(tmp_path / "out/new.h5ad")
    assert kept.obsm["X_stofm"].shape == (400, 256)
    assert np.isfinite(kept.obsm["X_stofm"]).all()
    assert set(kept.obs["stofm_region"]) == set(kept.obs["region"])
    assert (tmp_path / "out/regions.png").stat().st_size > 10_000


def test_sets_hold_the_true_type_as_often_as_asked(annotating):
    assert annotating["coverage"] == pytest.approx(annotating["COVERAGE"], abs=0.05)
    assert np.mean([len(one) for one in annotating["sets"]]) < 3.5  # all seven types would hold it always
    assert (annotating["here"] / "out/calibration.png").stat().st_size > 5_000


def test_cells_that_keep_their_name_are_right_more_often(annotating):
    assert annotating["found"].scores.macro_f1 > 0.5  # seven types: 0.14 by chance
    assert 0.5 < annotating["is_named"].mean() < 1
    assert annotating["accuracy"]["named cells"] > annotating["accuracy"]["all cells"] + 0.03
    assert (annotating["here"] / "out/cell_types.png").stat().st_size > 10_000


def test_another_tissue_is_met_with_doubt(annotating):
    here, elsewhere = annotating["signs"].loc["new slice"], annotating["signs"].loc["another tissue"]
    assert elsewhere["mean probability"] < here["mean probability"] - 0.1
    assert elsewhere["withheld"] > 1.5 * here["withheld"]
    assert elsewhere["types in a set"] > 1.3 * here["types in a set"]
    assert elsewhere["named right"] < 0.2 < here["named right"]


def test_pretraining_keeps_every_cell_learns_and_leaves_a_model_that_embeds(tmp_path):
    world = {"n_slices": 2, "n_cells": 200, "panel_sizes": [60, 90]}
    left = walk("pretrain_on_your_slices", tmp_path, OUT="out", WORLD=world, EPOCHS={"encoder_stage": 3, "se2_stage": 6})
    assert [entry["n_cells"] for entry in left["corpus"].manifest["slices"]] == [200, 200]
    assert np.isfinite(left["losses"].to_numpy()).sum() == sum(len(line["losses"]) for line in left["log"])
    assert set(left["change"].index) == {"mgm", "contrastive", "mcm", "pdr", "context", "own"}
    first, last = left["change"]["first five steps"], left["change"]["last five steps"]
    assert (last < first).drop("own").all()
    assert last["own"] < 0.1, "the model tells it when it starts, to a fraction of its spread, and goes on to"
    assert left["unseen"].uns["stofm"]["weights_sha256"] == load_model(tmp_path / left["model"]).weights_sha256
    assert np.isfinite(left["unseen"].obsm["X_stofm"]).all()


@pytest.mark.parametrize("name", TUTORIALS)
def test_what_a_notebook_shows_was_made_in_one_go_without_errors(name):
    cells = code_cells(name)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert {output["output_type"] for output in outputs} <= {"execute_result", "display_data", "stream"}
    assert "stderr" not in {output.get("name") for output in outputs}
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_notebook_is_small_and_names_no_place_of_the_machine_it_ran_on(name):
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert MACHINE.findall(re.sub(r'"image/png": "[^"]*"', "", text)) == []
