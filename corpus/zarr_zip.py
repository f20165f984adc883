"""One zarr v3 store in one zip file: whole or absent, the same bytes whenever it is written, no missing chunk read as zeros.

A folder of chunks can lose one, and zarr reads what is missing as zeros; one file has one hash, and its list of members
tells whether every chunk is there.
"""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
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
def open_store(path: Path) -> Iterator[Store]:
    """Open a store for reading; `FormatError` if the file is missing, damaged or lacks a chunk."""
    if not zipfile.is_zipfile(path):
        raise FormatError(f"{path}: missing or no zip file; expected a store of a corpus. Build the corpus again.")
    with zipfile.ZipFile(path) as archive:
        yield Store(path, archive)


class Store:
    """A store that this program wrote: arrays of zstd chunks along their first axis.

    zarr reads it as well, but takes milliseconds for every array, which is most of the time that a small slice needs.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self._archive, members = path, archive, set(archive.namelist())
        with naming_damage(path):
            self._nodes = {
                name.removesuffix("zarr.json").rstrip("/"): json.loads(archive.read(name)) for name in members if name.endswith("zarr.json")
            }
            if not self._nodes:
                raise FormatError(f"{path}: found no zarr store in it; expected one. Build the corpus again.")
            for name, node in self._nodes.items():
                if node["node_type"] == "array":
                    missing = [chunk for chunk in _chunks_of(name, node) if chunk not in members]
                    if missing:
                        raise FormatError(f"{path}: chunk {missing[0]} is missing; expected every chunk of {name!r}. Build the corpus again.")

    def __contains__(self, name: str) -> bool:
        return name in self._nodes

    def attributes(self, name: str = "") -> dict[str, Any]:
        """Attributes of a group or array."""
        return self._nodes[name]["attributes"]

    def children(self, name: str) -> list[str]:
        """Names of the nodes directly in a group, sorted."""
        return sorted(node.removeprefix(f"{name}/") for node in self._nodes if node.rpartition("/")[0] == name and node)

    def dtype(self, name: str) -> np.dtype:
        """The dtype of an array of numbers."""
        return np.dtype(self._nodes[name]["data_type"])

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return rows `start` to `stop` of an array; only the chunks that they lie in are read. A scalar has shape ()."""
        from numcodecs.vlen import VLenUTF8
        from numcodecs.zstd import Zstd

        with naming_damage(self.path):
            node = self._nodes[name]
            shape, (n_rows, *_) = node["shape"] or [1], node["chunk_grid"]["configuration"]["chunk_shape"] or [1]
            first, *codecs = (codec["name"] for codec in node["codecs"])
            if codecs != ["zstd"]:
                raise FormatError(f"{self.path}: {name!r} is encoded with {codecs}; expected zstd alone. Build the corpus again.")
            stop = shape[0] if stop is None else min(stop, shape[0])
            dtype = np.dtype(object) if first == "vlen-utf8" else np.dtype(node["data_type"])
            rows, chunks = np.empty((max(0, stop - start), *shape[1:]), dtype), _chunks_of(name, node)
            for number in range(start // n_rows, -(-stop // n_rows)):
                data, at = Zstd().decode(self._archive.read(chunks[number])), number * n_rows
                chunk = VLenUTF8().decode(data) if first == "vlen-utf8" else np.frombuffer(data, dtype).reshape(-1, *shape[1:])
                begin, end = max(start, at), min(stop, at + n_rows)
                rows[begin - start : end - start] = chunk[begin - at : end - at]
            return rows if node["shape"] else rows.reshape(())


def _chunks_of(name: str, node: Mapping[str, Any]) -> list[str]:
    """Names of the members that hold the chunks of an array, in the order of its rows."""
    grid = [-(-size // chunk) for size, chunk in zip(node["shape"], node["chunk_grid"]["configuration"]["chunk_shape"], strict=True)]
    if math.prod(grid[1:]) > 1:
        raise FormatError(f"{name!r} is chunked along {grid}; expected chunks of whole rows. Build the corpus again.")
    return ["/".join([name, "c", *map(str, place)]) for place in np.ndindex(*grid)]


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


def _zip_folder(folder: Path, path: Path) -> None:
    """Zip a folder's files in sorted order with fixed times, so that equal contents give equal bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            member = zipfile.ZipInfo(file.relative_to(folder).as_posix(), date_time=SINCE_ZIP_BEGAN)
            member.file_size = file.stat().st_size  # zipfile chooses the header of large files by it
            with file.open("rb") as source, archive.open(member, "w") as target:
                shutil.copyfileobj(source, target, 2**20)
