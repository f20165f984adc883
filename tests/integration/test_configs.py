"""Every configuration in `configs/` is one that its verb takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from corpus.build import CorpusConfig
from downstream.comparisons import CompareConfig
from downstream.evaluate import EvaluateConfig
from pretrain.config import PretrainConfig
from stofm.config import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MODEL_OF_FOLDER = {"corpus": CorpusConfig, "pretrain": PretrainConfig, "evaluate": EvaluateConfig, "compare": CompareConfig}
LAUNCH = CONFIGS / "accelerate"  # configurations of accelerate's own, tested in test_launch.py
FILES = sorted(file for file in CONFIGS.rglob("*.y*ml") if file.parent != LAUNCH)


def test_there_are_configurations_of_every_verb():
    assert {file.parent.name for file in FILES} == set(MODEL_OF_FOLDER)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_a_configuration_loads(file):
    load_config(MODEL_OF_FOLDER[file.parent.name], file)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_a_configuration_says_what_it_is_for_and_how_it_is_run(file):
    verb = {"corpus": "build", "pretrain": "train", "evaluate": "evaluate", "compare": "compare"}[file.parent.name]
    first, second = file.read_text(encoding="utf-8").splitlines()[:2]
    assert first.startswith("# ")
    assert f"stofm {verb} configs/{file.relative_to(CONFIGS)}" in second
