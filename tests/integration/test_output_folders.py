"""Output folders that hold something else: one line, exit code 2, and not a byte of them changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli import contents, refused, write_yaml

from stofm.durable import MARKER, write_json


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def commands(tiny_run_config, simulated_paths, tiny_run, embedded, region_head, cell_type_head):
    """Every verb in good order, its results to go to `out`."""
    slices = [{"path": str(path)} for path in simulated_paths]
    build = write_yaml(Path("build.yaml"), {"out": "out", "slices": slices})
    train = write_yaml(Path("train.yaml"), tiny_run_config.model_dump(mode="json") | {"out": "out"})
    tasks = [{"name": "regions", "task": "region", "slices": slices}]
    evaluate = write_yaml(Path("evaluate.yaml"), {"model": str(tiny_run / "model"), "out": "out", "tasks": tasks, "allow_seen": True})
    return {
        "demo": ["demo", "--out", "out"],
        "build": ["build", build],
        "train": ["train", train],
        "adapt": ["adapt", simulated_paths[0], "--model", tiny_run / "model", "--out", "out"],
        "embed": ["embed", *simulated_paths, "--model", tiny_run / "model", "--out", "out"],
        "segment fit": ["segment", "fit", *embedded, "--out", "out"],
        "segment predict": ["segment", "predict", *embedded, "--head", region_head, "--out", "out"],
        "annotate fit": ["annotate", "fit", *embedded, "--out", "out"],
        "annotate predict": ["annotate", "predict", *embedded, "--head", cell_type_head, "--out", "out"],
        "evaluate": ["evaluate", evaluate],
    }


VERBS = ["demo", "build", "train", "adapt", "embed", "segment fit", "segment predict", "annotate fit", "annotate predict", "evaluate"]
HOLDINGS = {
    "foreign file": (lambda: Path("out", "thesis.tex").write_text("my thesis"), "files that SToFM did not write"),
    "folder of another kind": (lambda: write_json(Path("out", MARKER), {"kind": "stofm-thesis/1"}), "a folder of kind 'stofm-thesis/1'"),
    "slice of that name": (lambda: Path("out", "slice_0.h5ad").write_text("mine"), "files that SToFM did not write"),
}


@pytest.mark.parametrize("holding", HOLDINGS)
@pytest.mark.parametrize("verb", VERBS)
def test_an_output_folder_that_holds_something_else_is_left_alone(verb, holding, commands):
    hold, found = HOLDINGS[holding]
    Path("out").mkdir()
    hold()
    before = contents(Path("out"))
    line = refused(*commands[verb])
    assert f"output out: found {found}; expected a new or empty folder" in line
    assert "Choose another output" in line
    assert contents(Path("out")) == before


@pytest.mark.parametrize("verb", VERBS)
def test_an_output_that_is_a_file_is_left_alone(verb, commands):
    Path("out").write_text("a file")
    assert "output out: found a file; expected a folder" in refused(*commands[verb])
    assert Path("out").read_text() == "a file"


def test_a_finished_corpus_of_other_settings_is_left_alone(tiny_corpus, simulated_paths):
    before = contents(tiny_corpus.folder)
    config = write_yaml(Path("c.yaml"), {"out": str(tiny_corpus.folder), "slices": [{"path": str(simulated_paths[0])}]})
    assert f"output {tiny_corpus.folder}: found a corpus of other settings" in refused("build", config)
    assert contents(tiny_corpus.folder) == before


def test_a_finished_run_of_another_configuration_is_left_alone(tiny_run, tiny_run_config):
    before = contents(tiny_run)
    config = write_yaml(Path("c.yaml"), tiny_run_config.model_dump(mode="json"))
    assert f"output {tiny_run}: found a run of another configuration" in refused("train", config, "seed=7")
    assert contents(tiny_run) == before
