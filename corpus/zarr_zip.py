"""One zarr v3 store in one zip file: whole or absent, the same bytes whenever it is written, no missing chunk read as zeros.

A folder of chunks can lose one, and zarr reads what is missing as zeros; one file has one hash, and its list of members
tells whether every chunk is there.
"""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from stofm.durable import replacing
from stofm.errors import FormatError

Group = Any  # zarr.Group, whose annotations leave open whether an item is an array, a group or a number
CHUNK = 2**20  # elements that are compressed together, one member of the zip; the list of members serves as zarr's shard index would
ZSTD_LEVEL = 3
SINCE_ZIP_BEGAN = (1980, 1, 1, 0, 0, 0)


@contextmanager
def new_group(path: Path) -> Iterator[Group]:
    """Yield an empty group to fill; it becomes the zip `path`, whole or not at all, if the block succeeds."""
    import zarr

    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=".", suffix=".part") as scratch:
        with zarr.config.set({"array.write_empty_chunks": True}):  # a chunk of zeros is written, so that a missing one is a fault
            yield zarr.open_group(Path(scratch) / "store", mode="w", zarr_format=3)
        with replacing(path) as aside:
            _zip_folder(Path(scratch) / "store", aside)


@contextmanager
def open_group(path: Path) -> Iterator[Group]:
    """Yield the group in a zip for reading; `FormatError` if the file is missing, damaged or lacks a chunk.

    Read from it inside `naming_damage(path)`: what the caller's own work raises is not this file's fault.
    """
    import zarr
    from zarr.storage import ZipStore

    if not zipfile.is_zipfile(path):
        raise FormatError(f"{path}: missing or no zip file; expected a store of a corpus. Build the corpus again.")
    with naming_damage(path):
        _require_whole(path)
    with ZipStore(path, mode="r") as store:
        with naming_damage(path):
            group = zarr.open_group(store, mode="r")
        yield group


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Turn what zarr, its codecs and zipfile raise on a damaged store into a `FormatError`; faults of the machine pass through."""
    try:
        yield
    except (FileNotFoundError, KeyError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path}: {error}; expected a store of a corpus. Build the corpus again.") from error


def write_parts(group: Group, name: str, dtype: np.dtype, shape: tuple[int, ...], parts: Iterable[np.ndarray], *, chunk: int = CHUNK) -> None:
    """Write an array that comes in parts, one after the other along its first axis; one chunk is held at a time.

    Parameters
    ----------
    shape : (n, ...)
        Of the whole; the lengths of the parts add up to n.
    chunk : int
        Elements of a chunk, nearly.
    """
    from zarr.codecs import ZstdCodec

    n_rows = min(max(1, shape[0]), max(1, chunk // max(1, math.prod(shape[1:]))))
    codec = ZstdCodec(level=ZSTD_LEVEL, checksum=True)
    array = group.create_array(name, shape=shape, dtype=dtype, chunks=(n_rows, *(max(1, size) for size in shape[1:])), compressors=codec)
    held = np.empty((n_rows, *shape[1:]), dtype)
    n_held = start = 0
    for part in parts:
        while len(part):
            taken, part = part[: n_rows - n_held], part[n_rows - n_held :]
            held[n_held : n_held + len(taken)] = taken
            n_held += len(taken)
            if n_held == n_rows or start + n_held == shape[0]:
                array[start : start + n_held] = held[:n_held]
                n_held, start = 0, start + n_held
    assert start == shape[0], f"{name}: {start} of {shape[0]} rows were given"


def _require_whole(path: Path) -> None:
    """Raise `FormatError` unless every chunk of every array is a member of the zip."""
    with zipfile.ZipFile(path) as archive:
        members = set(archive.namelist())
        nodes = {name.removesuffix("zarr.json"): json.loads(archive.read(name)) for name in members if name.endswith("zarr.json")}
    if not nodes:
        raise FormatError(f"{path}: found no zarr store in it; expected one. Build the corpus again.")
    for prefix, node in nodes.items():
        if node["node_type"] == "array":
            grid = [-(-size // chunk) for size, chunk in zip(node["shape"], node["chunk_grid"]["configuration"]["chunk_shape"], strict=True)]
            missing = [name for place in np.ndindex(*grid) if (name := "/".join([f"{prefix}c", *map(str, place)])) not in members]
            if missing:
                raise FormatError(f"{path}: chunk {missing[0]} is missing; expected {math.prod(grid)} of {prefix[:-1]!r}. Build the corpus again.")


def _zip_folder(folder: Path, path: Path) -> None:
    """Zip a folder's files in sorted order with fixed times, so that equal contents give equal bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            member = zipfile.ZipInfo(file.relative_to(folder).as_posix(), date_time=SINCE_ZIP_BEGAN)
            member.file_size = file.stat().st_size  # zipfile chooses the header of large files by it
            with file.open("rb") as source, archive.open(member, "w") as target:
                shutil.copyfileobj(source, target, 2**20)
