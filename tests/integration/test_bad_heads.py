"""Heads fitted on, or applied to, what they are not for: one line, exit code 2, nothing written."""

from __future__ import annotations

import shutil
from pathlib import Path

import anndata
import pytest
from cli import contents, refused

VERBS = ["segment", "annotate"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=VERBS)
def verb(request) -> str:
    return request.param


@pytest.fixture
def head(verb, region_head, cell_type_head) -> Path:
    return {"segment": region_head, "annotate": cell_type_head}[verb]


@pytest.fixture
def other_head(verb, region_head, cell_type_head) -> Path:
    return {"segment": cell_type_head, "annotate": region_head}[verb]


def make_text() -> Path:
    Path("text.h5ad").write_text("cell,gene\n")
    return Path("text.h5ad")


NO_EMBEDDED_SLICE = {
    "missing": (lambda simulated: Path("missing.h5ad"), "no such file"),
    "no AnnData": (lambda simulated: make_text(), "not readable as AnnData"),
    "not embedded": (lambda simulated: Path(shutil.copy(simulated, "plain.h5ad")), "found no obsm['X_stofm']"),
}


@pytest.mark.parametrize("fault", NO_EMBEDDED_SLICE)
def test_fit_and_predict_want_embedded_slices(fault, verb, head, simulated_paths):
    make, found = NO_EMBEDDED_SLICE[fault]
    path = make(simulated_paths[0])
    for words in (["fit", path, "--out", "out"], ["predict", path, "--head", head, "--out", "out"]):
        line = refused(verb, *words)
        assert f"slice '{path.stem}'" in line
        assert found in line
        assert "expected" in line
    assert not Path("out").exists()


def test_fit_wants_the_labelled_column(verb, embedded):
    line = refused(verb, "fit", *embedded, "--label", "layer", "--out", "out")
    assert "slice 'slice_0': labelled column 'layer' is absent: found obs columns ['cell_type', 'region'" in line
    assert not Path("out").exists()


def test_fit_wants_two_classes(verb, embedded):
    table = anndata.read_h5ad(embedded[0])
    table.obs["same"] = "one"
    table.write_h5ad("same.h5ad")
    line = refused(verb, "fit", "same.h5ad", "--label", "same", "--out", "out")
    assert "found 1 classes ['one']" in line
    assert not Path("out").exists()


def test_fit_wants_slices_of_one_model(verb, embedded, of_another_model):
    line = refused(verb, "fit", embedded[1], of_another_model, "--out", "out")
    assert "slice 'foreign': embedded with model 000000000000; expected " in line
    assert not Path("out").exists()


def test_predict_wants_a_slice_of_the_model_of_the_head(verb, head, of_another_model):
    line = refused(verb, "predict", of_another_model, "--head", head, "--out", "out")
    assert "slice 'foreign': embedded with model 000000000000; expected " in line
    assert "Embed it with the same model" in line
    assert not Path("out").exists()


def test_predict_wants_a_head_for_its_task(verb, other_head, embedded):
    line = refused(verb, "predict", embedded[2], "--head", other_head, "--out", "out")
    assert f"head {other_head}: found a head for " in line
    assert f"`stofm {verb} fit`" in line
    assert not Path("out").exists()


@pytest.mark.parametrize("folder", ["none", "model"])
def test_predict_wants_a_folder_with_a_head(verb, folder, embedded, tiny_run):
    path = {"none": Path("none"), "model": tiny_run / "model"}[folder]
    line = refused(verb, "predict", embedded[2], "--head", path, "--out", "out")
    assert f"{path}: found " in line
    assert f"Make it with `stofm {verb} fit`" in line
    assert not Path("out").exists()


def test_a_damaged_head_is_named(verb, head, embedded):
    shutil.copytree(head, "damaged")
    file = Path("damaged", "head.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    assert "head damaged/head.safetensors" in refused(verb, "predict", embedded[2], "--head", "damaged", "--out", "out")


def test_a_fit_that_is_refused_leaves_the_earlier_head(verb, head, embedded):
    shutil.copytree(head, "out")
    before = contents(Path("out"))
    refused(verb, "fit", *embedded, "--label", "layer", "--out", "out")
    assert contents(Path("out")) == before
