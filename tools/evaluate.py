"""`stofm evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from downstream.evaluate import EvaluateConfig, evaluate
from stofm.config import load_config
from tools.console import say, tracking


def run_evaluate(path: Path, overrides: Sequence[str], *, overwrite: bool) -> None:
    """Run the evaluation that a configuration describes and print its table."""
    config = load_config(EvaluateConfig, path, overrides)
    say(evaluate(config, overwrite=overwrite, track=tracking).read_text(encoding="utf-8"))
    say(f"tables, per-class scores, splits and pictures: {config.out}")
