"""`stofm export`."""

from __future__ import annotations

from pathlib import Path

from corpus.readers import read_table, slice_name
from corpus.slice import SliceSpec
from downstream.export import FORMATS, export
from stofm.durable import check_folder, claim_folder
from stofm.errors import ConfigError
from tools.console import say, tracking

EXPORT_KIND = "stofm-export/1"


def run_export(path: Path, out: Path, *, to: str, group: str | None) -> Path:
    """Write an embedded or predicted slice into ``out/<name>-<format>/``; `ConfigError` if that is there already."""
    if to not in FORMATS:
        raise ConfigError(f"--to: found {to!r}; expected one of {', '.join(FORMATS)}.")
    check_folder(out, EXPORT_KIND)
    spec = SliceSpec(path=str(path))
    folder = out / f"{slice_name(spec)}-{to}"
    if folder.exists():
        raise ConfigError(f"output {folder}: found an export; expected none. Choose another output, or remove it.")
    table = read_table(spec)
    with tracking(f"{slice_name(spec)}: writing for {to}"):
        claim_folder(out, EXPORT_KIND)
        export(table, spec, folder, to=to, group=group)
    say(f"{slice_name(spec)}: {folder}")
    return folder
