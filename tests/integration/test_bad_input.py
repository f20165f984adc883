"""Bad settings, and folders that are not what a verb needs: one line, exit code 2, nothing written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cli import refused, write_yaml

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
    [(None, "no such file"), ("- a\n- b\n", "found list"), ("a: [1\n", "expected valid YAML"), ("out: out\n", "found {'out': 'out'}")],
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
