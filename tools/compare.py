"""`stofm compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from downstream.comparisons import CompareConfig, compare, markdown_tables
from stofm.config import load_config
from tools.console import say, tracking


def run_compare(path: Path, overrides: Sequence[str]) -> None:
    """Run the comparison that a configuration describes and print its tables."""
    config = load_config(CompareConfig, path, overrides)
    say(markdown_tables(compare(config, track=tracking)))
    say(f"tables: {config.out}")
