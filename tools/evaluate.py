"""`stofm evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from downstream.evaluate import EvaluateConfig, evaluate, markdown_table
from stofm.config import load_config
from tools.console import say, tracking


def run_evaluate(path: Path, overrides: Sequence[str]) -> None:
    """Run the evaluation that a configuration describes and print its table."""
    config = load_config(EvaluateConfig, path, overrides)
    say(markdown_table(evaluate(config, track=tracking)))
    say(f"table, per-class scores and pictures: {config.out}")
