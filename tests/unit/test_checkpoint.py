"""A model folder: damage is found, and what another version wrote is opened or refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from downstream.embedding import load_embedder
from stofm.checkpoint import load_model
from stofm.durable import file_sha256
from stofm.errors import CheckpointError, ConfigError, StofmError


@pytest.fixture
def model(tiny_run, tmp_path) -> Path:
    return shutil.copytree(tiny_run / "model", tmp_path / "model")


def edit(path: Path, **changes) -> None:
    """Change entries of a JSON file; None drops one."""
    stated = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in stated.items() if value is not None}))


def sizes(model: Path, **changes) -> dict:
    return json.loads((model / "model.json").read_text())["se2_transformer"] | changes


@pytest.mark.parametrize(
    "name",
    ["se2_transformer.safetensors", "cell_encoder/cell_proj.safetensors", "cell_encoder/cell_bert/config.json", "gene_vocab.csv", "scales.json"],
)
@pytest.mark.parametrize("damage", ["tampered", "truncated", "missing"])
def test_a_damaged_file_is_named(model, name, damage):
    path = model / name
    raw = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(raw[: len(raw) // 2] if damage == "truncated" else raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=f"{name} is missing or changed"):
        load_model(model)


def test_a_model_written_before_schemes_were_stored_is_one_of_ours(model):
    before = sizes(model)
    del before["scheme"]
    edit(model / "model.json", se2_transformer=before, licence=None)
    assert load_model(model).se2_transformer.config.scheme == "stofm"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: {"format": "stofm-model/2"}, r"format: Input should be 'stofm-model/1'; found 'stofm-model/2'"),
        (lambda model: {"colour": "red"}, r"unknown key 'colour'; expected one of files, format"),
        (lambda model: {"files": None}, "files: Field required"),
        (lambda model: {"se2_transformer": sizes(model, scheme="other")}, "scheme: Input should be 'stofm' or 'published'; found 'other'"),
        (lambda model: {"se2_transformer": sizes(model, n_hedas=4)}, r"unknown key 'se2_transformer\.n_hedas'.*did you mean 'n_heads'"),
        (lambda model: {"se2_transformer": sizes(model, n_heads=3)}, "n_heads 3 does not divide 256"),
    ],
    ids=["format", "key", "no files", "scheme", "size unknown", "size impossible"],
)
def test_a_description_that_this_version_does_not_know_is_refused(model, change, said):
    edit(model / "model.json", **change(model))
    with pytest.raises(ConfigError, match=rf"model\.json: .*{said}") as refusal:
        load_model(model)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("changes", [{"scheme": "published"}, {"n_layers": 1}, {"ffn_dim": 8}], ids=str)
def test_weights_of_another_shape_than_described_are_refused(model, changes):
    edit(model / "model.json", se2_transformer=sizes(model, **changes))
    with pytest.raises(CheckpointError, match=r"se2_transformer\.safetensors: .*expected the weights of this model"):
        load_model(model)


def test_parts_of_two_schemes_are_refused(model):
    edit(model / "scales.json", scheme="published")
    found = json.loads((model / "model.json").read_text())["files"]
    edit(model / "model.json", files=found | {"scales.json": file_sha256(model / "scales.json")})
    with pytest.raises(CheckpointError, match=r"scales\.json has scheme 'published', model\.json 'stofm'; expected one scheme"):
        load_embedder(model)


@pytest.mark.parametrize("text", ["{", "[1]", ""], ids=["broken", "list", "empty"])
def test_a_description_that_is_none_is_refused(model, text):
    (model / "model.json").write_text(text)
    with pytest.raises(StofmError, match=r"model\.json: .*expected"):
        load_model(model)
