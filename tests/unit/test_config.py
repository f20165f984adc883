"""Configurations: closed, frozen, merged from file and command line, and clear about what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field, ValidationError

from stofm.config import FrozenModel, load_config, parse_config
from stofm.errors import ConfigError


class Optim(FrozenModel):
    lr: float = Field(1e-3, gt=0)
    clip_norm: float = 1.0


class Piece(FrozenModel):
    path: str


class Run(FrozenModel):
    steps: int
    seed: int = 0
    optim: Optim = Field(default_factory=Optim)
    extra: Optim | None = None
    slices: list[Piece] = Field(default_factory=list)


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("steps: 50\noptim: {lr: 3e-4}\nslices: [{path: a}]\n")
    return path


def test_defaults_give_way_to_the_file_and_the_file_to_the_command_line(yaml_file):
    config = load_config(Run, yaml_file, ["optim.lr=1e-4", "seed=7"])
    assert config == Run(steps=50, seed=7, optim=Optim(lr=1e-4, clip_norm=1.0), slices=[Piece(path="a")])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 1, "sed": 2}, r"here: unknown key 'sed'; expected one of extra, optim, seed, slices, steps; did you mean 'seed'\?"),
        ({"steps": 1, "optim": {"lrr": 1}}, r"unknown key 'optim.lrr'; .* did you mean 'lr'\?"),
        ({"steps": 1, "extra": {"clip_nrm": 1}}, r"unknown key 'extra.clip_nrm'; .* did you mean 'clip_norm'\?"),
        ({"steps": 1, "slices": [{"path": "a", "pth": "b"}]}, r"unknown key 'slices.0.pth'; expected one of path; did you mean 'path'\?"),
        ({"steps": 1, "a": 1, "b": 2}, r"unknown key 'a'.*\(1 more fault behind it\)"),
        ({}, r"here: steps: Field required"),
        ({"steps": 1, "optim": {"lr": -1}}, r"here: optim.lr: Input should be greater than 0; found -1"),
    ],
)
def test_a_fault_is_named_with_its_key_and_the_nearest_known_name(values, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(Run, values, where="here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2\n", "expected valid YAML"),
        ("steps: [", "expected valid YAML"),
        ("steps: 1\nsteps: 2\n", "duplicate key"),
        ("steps: ${nowhere}\n", "'nowhere' not found"),
        ("42\n", "expected a mapping|expected valid YAML"),
        ("\xff", "codec can't decode"),
    ],
    ids=["list", "unclosed", "twice", "interpolation", "scalar", "no utf-8"],
)
def test_a_file_that_is_no_yaml_mapping_is_refused(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=message):
        load_config(Run, tmp_path / "bad.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"configuration .*none\.yaml: no such file; expected a YAML file"):
        load_config(Run, tmp_path / "none.yaml")


def test_an_override_without_a_value_is_refused(yaml_file):
    with pytest.raises(ConfigError, match=r"override 'seed': found no '='; expected key=value"):
        load_config(Run, yaml_file, ["seed"])


def test_a_checked_configuration_cannot_be_edited():
    with pytest.raises(ValidationError, match="frozen"):
        Run(steps=1).steps = 2  # type: ignore[misc]


def test_the_digest_follows_the_settings_and_not_how_they_were_given(yaml_file):
    given = load_config(Run, yaml_file)
    assert given.digest() == Run(steps=50, optim=Optim(lr=3e-4), slices=[Piece(path="a")]).digest()
    assert given.digest() != load_config(Run, yaml_file, ["seed=1"]).digest()
    assert given.digest(exclude={"seed"}) == load_config(Run, yaml_file, ["seed=1"]).digest(exclude={"seed"})


def test_the_resolved_yaml_reads_back_the_same(tmp_path, yaml_file):
    config = load_config(Run, yaml_file, ["seed=3"])
    (tmp_path / "resolved.yaml").write_text(config.to_yaml())
    assert load_config(Run, tmp_path / "resolved.yaml") == config
