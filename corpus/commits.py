"""Commit records: the only proof that a step of a build is done. A file that no record names is not there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stofm.durable import file_sha256, read_json, remove, sync, write_json

COMMITS, QUARANTINE = "commits", "quarantine"


def task_key(step: str, version: int, inputs: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """Return the sha256 of all that decides what a step makes; `version` rises when its code makes something else."""
    return hashlib.sha256(json.dumps([step, version, dict(inputs), dict(params)], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Commit:
    """The place of one commit record: what a step made of one slice (or of the whole corpus)."""

    folder: Path
    name: str
    step: str

    @property
    def path(self) -> Path:
        return self.folder / COMMITS / self.name / f"{self.step}.json"

    def read(self) -> dict[str, Any] | None:
        """Return the record, whether or not it still holds."""
        return read_json(self.path) if self.path.is_file() else None

    def standing(self, key: str, *, verify: bool = False) -> dict[str, Any] | None:
        """Return the record if it is of this task and its files are there at their exact sizes; `verify` reads them, too."""
        record = self.read()
        if record is None or record["task_key"] != key:
            return None
        return record if all(_is_whole(self.folder / file["path"], file, verify) for file in record["files"]) else None

    def void(self) -> None:
        """Take the record back; to be done before any of its files is written again."""
        if self.path.is_file():
            remove(self.path)
            sync(self.path.parent)

    def write(self, key: str, files: Iterable[Path], result: Mapping[str, Any]) -> dict[str, Any]:
        """Declare the step done: the files, whole and under their names, with sizes and hashes."""
        record = {"task_key": key, "step": self.step, "name": self.name, "files": [_file_entry(self.folder, file) for file in files], **result}
        write_json(self.path, record)
        return record


def sweep_unnamed(folder: Path, kept: Iterable[Path]) -> None:
    """Remove every file of slices, views and records that is not among `kept`, and the folders that it leaves empty."""
    known = set(kept)
    for part in ("slices", "sketches", "views", COMMITS, QUARANTINE):
        for path in [*sorted((folder / part).rglob("*"), reverse=True), folder / part]:
            if not path.is_dir():
                if path not in known:
                    remove(path)
            elif not any(path.iterdir()):
                path.rmdir()


def files_of(folder: Path, record: Mapping[str, Any]) -> list[Path]:
    """Return the files that a record names."""
    return [folder / file["path"] for file in record["files"]]


def _file_entry(folder: Path, path: Path) -> dict[str, Any]:
    return {"path": str(path.relative_to(folder)), "bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _is_whole(path: Path, file: Mapping[str, Any], verify: bool) -> bool:
    if not path.is_file() or path.stat().st_size != file["bytes"]:
        return False
    return not verify or file_sha256(path) == file["sha256"]
