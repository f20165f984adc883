"""Bad settings, folders and heads: one line, exit code 2, and what stands in the output folder stays as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cli import contents, refused, write_yaml

from stofm.durable import MARKER, write_json

TASK = {"name": "regions", "task": "region", "slices": [{"path": "one.h5ad"}, {"path": "two.h5ad"}]}
SETTINGS = {  # complete ones, of each verb that takes a configuration
    "build": {"out": "out", "slices": [{"path": "one.h5ad"}]},
    "train": {"corpus": "corpus", "out": "out"},
    "evaluate": {"model": "model", "out": "out", "tasks": [TASK]},
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("verb", "override", "key", "nearest"),
    [
        ("build", "gene.min_cells=3", "gene", "genes"),
        ("build", "scales.sub_slices.n_cels=3", "scales.sub_slices.n_cels", "n_cells"),
        ("train", "sed=3", "sed", "seed"),
        ("train", "se2_stage.optim.learning=3", "se2_stage.optim.learning", "lr"),
        ("evaluate", "probe.kinds=knn", "probe.kinds", "kind"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_known_name(verb, override, key, nearest):
    line = refused(verb, write_yaml(Path("c.yaml"), SETTINGS[verb]), override)
    assert f"configuration c.yaml: unknown key '{key}'" in line
    assert f"did you mean '{nearest}'?" in line or key.endswith("learning")
    assert nearest in line
    assert not Path("out").exists()


@pytest.mark.parametrize("verb", SETTINGS)
@pytest.mark.parametrize(
    ("text", "found"),
    [(None, "no such file"), ("- a\n- b\n", "found list"), ("a: [1\n", "expected valid YAML"), ("out: out\n", "Field required")],
    ids=["missing", "list", "broken", "incomplete"],
)
def test_a_file_that_is_no_configuration_is_refused(verb, text, found):
    if text is not None:
        Path("c.yaml").write_text(text)
    line = refused(verb, "c.yaml")
    assert "configuration c.yaml" in line
    assert found in line


@pytest.mark.parametrize("verb", SETTINGS)
def test_an_override_is_key_and_value(verb):
    assert "override 'seed': found no '='" in refused(verb, write_yaml(Path("c.yaml"), SETTINGS[verb]), "seed")


def test_a_choice_that_is_none_is_refused_with_the_choices(simulated_paths, embedded):
    assert "'auto', 'human' or 'mouse'" in refused("check", simulated_paths[0], "--species", "fly")
    assert "'linear', 'mlp' or 'knn'" in refused("segment", "fit", embedded[0], "--out", "head", "--kind", "tree")
    assert "um_per_unit" in refused("check", simulated_paths[0], "--um-per-unit", "-1")


def test_two_slices_of_one_name_are_refused(simulated_paths, tiny_run):
    Path("other").mkdir()
    twin = shutil.copy(simulated_paths[0], "other")
    line = refused("embed", simulated_paths[0], twin, "--model", tiny_run / "model", "--out", "out")
    assert "'slice_0' twice" in line
    assert not Path("out").exists()


@pytest.fixture
def commands(tiny_run_config, simulated_paths, tiny_run, embedded, region_head, cell_type_head):
    """Every verb in good order, its results to go to `out`."""
    slices = [{"path": str(path)} for path in simulated_paths]
    build = write_yaml(Path("build.yaml"), {"out": "out", "slices": slices})
    train = write_yaml(Path("train.yaml"), tiny_run_config.model_dump(mode="json") | {"out": "out"})
    tasks = [{"name": "regions", "task": "region", "slices": slices}]
    evaluate = write_yaml(Path("evaluate.yaml"), {"model": str(tiny_run / "model"), "out": "out", "tasks": tasks})
    return {
        "demo": ["demo", "--out", "out"],
        "build": ["build", build],
        "train": ["train", train],
        "embed": ["embed", *simulated_paths, "--model", tiny_run / "model", "--out", "out"],
        "segment fit": ["segment", "fit", *embedded, "--out", "out"],
        "segment predict": ["segment", "predict", *embedded, "--head", region_head, "--out", "out"],
        "annotate fit": ["annotate", "fit", *embedded, "--out", "out"],
        "annotate predict": ["annotate", "predict", *embedded, "--head", cell_type_head, "--out", "out"],
        "evaluate": ["evaluate", evaluate],
    }


VERBS = ["demo", "build", "train", "embed", "segment fit", "segment predict", "annotate fit", "annotate predict", "evaluate"]
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


@pytest.mark.parametrize("state", ["absent", "empty", "unfinished"])
def test_training_on_a_corpus_that_is_not_built_is_refused(state, tiny_corpus):
    if state == "empty":
        Path("corpus").mkdir()
    if state == "unfinished":
        shutil.copytree(tiny_corpus.folder, "corpus", ignore=shutil.ignore_patterns("manifest.json"))
    line = refused("train", write_yaml(Path("c.yaml"), SETTINGS["train"]))
    assert "corpus" in line
    assert "stofm build" in line
    assert not Path("out").exists()


@pytest.mark.parametrize("verb", ["embed", "evaluate"])
def test_a_folder_that_is_no_model_is_refused(verb, tiny_run, simulated_paths):
    words = {
        "embed": ["embed", simulated_paths[0], "--model", tiny_run, "--out", "out"],
        "evaluate": ["evaluate", write_yaml(Path("c.yaml"), SETTINGS["evaluate"]), f"model={tiny_run}"],
    }
    line = refused(*words[verb])
    assert f"{tiny_run}: found a folder of kind 'stofm-run/1'; expected one of kind 'stofm-model/1'" in line
    assert not Path("out").exists()
