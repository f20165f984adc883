"""Files that are whole or absent: written aside, synced, then renamed; and folders that say what they hold."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stofm.errors import ConfigError, FormatError

MARKER = "stofm.json"  # names the kind and format version of a folder


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or folder to; it takes the place of `path` only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    remove(aside)
    try:
        yield aside
        for file in [aside, *aside.rglob("*")]:
            sync(file)
        if path.is_dir() and aside.is_dir():
            remove(path)
        os.replace(aside, path)
        sync(path.parent)
    finally:
        remove(aside)


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left aside anywhere below `folder`; nobody else may be writing there."""
    for leftover in sorted(folder.rglob(".*.part")):
        remove(leftover)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON with sorted keys, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; `FormatError` if the file is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: {error}; expected a JSON object that SToFM wrote. Rebuild the folder it is in.") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path}: found a JSON {type(value).__name__}; expected an object. Rebuild the folder it is in.")
    return value


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_sha256(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below `folder`, by its path relative to it."""
    return {str(file.relative_to(folder)): file_sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def tree_digest(folder: Path) -> str:
    """Return one sha256 for all files below `folder` and their names."""
    return hashlib.sha256(json.dumps(tree_sha256(folder)).encode()).hexdigest()


def sync(path: Path) -> None:
    """Ask the disk to keep what was written to a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def claim_folder(path: Path, kind: str) -> None:
    """Make `path` a folder of this `kind` (``stofm-corpus/1``), or accept it as one.

    Raises
    ------
    ConfigError
        If `path` is a file, or holds anything that is not a folder of this kind.
    """
    check_folder(path, kind)
    if not (path / MARKER).exists():
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / MARKER, {"kind": kind})


def check_folder(path: Path, kind: str) -> None:
    """Raise `ConfigError` if `path` cannot become, or is not, a folder of this `kind`; touch nothing."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"output {path}: found a file; expected a folder. Choose another output.")
    if not path.is_dir() or not any(child for child in path.iterdir() if not child.name.endswith(".part")):
        return
    found = read_json(path / MARKER).get("kind") if (path / MARKER).is_file() else None
    if found != kind:
        holds = f"a folder of kind {found!r}" if found else "files that SToFM did not write"
        raise ConfigError(f"output {path}: found {holds}; expected a new or empty folder, or one of kind {kind!r}. Choose another output.")


def require_folder(path: Path, kind: str, *, made_by: str) -> None:
    """Raise `ConfigError` unless `path` is a folder of this `kind`; `made_by` is the command that makes one."""
    found = read_json(path / MARKER).get("kind") if (path / MARKER).is_file() else None
    if found != kind:
        holds = f"a folder of kind {found!r}" if found else ("a folder without a SToFM marker" if path.is_dir() else "no such folder")
        raise ConfigError(f"{path}: found {holds}; expected one of kind {kind!r}. Make it with `{made_by}`.")
