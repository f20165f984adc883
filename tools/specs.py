"""From the options of a verb to the settings of its slices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from corpus.readers import slice_name
from corpus.slice import SliceSpec
from stofm.config import parse_config
from stofm.errors import ConfigError


def slice_specs(paths: Sequence[Path], **options: object) -> list[SliceSpec]:
    """Give every path the same options; `ConfigError` if an option is no such setting or two slices share a name."""
    specs = [parse_config(SliceSpec, {"path": str(path), **options}, where="options") for path in paths]
    names = [slice_name(spec) for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"slices: found the name {twice[0]!r} twice; expected different file names, for the outputs are named after them.")
    return specs
