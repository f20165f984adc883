"""Nothing is overwritten unless the person says so."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from stofm.errors import ConfigError


def require_new(paths: Iterable[Path], *, overwrite: bool) -> None:
    """Raise `ConfigError` if one of the files that a verb will write is there already, unless it may be replaced; touch nothing."""
    found = [path for path in paths if path.exists()]
    if found and not overwrite:
        raise ConfigError(f"output {found[0]}: it exists already; expected a new name. Choose another output, or add --overwrite.")
