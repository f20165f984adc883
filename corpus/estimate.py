"""What a build will take, before anything is read: cells, entries, space on the disk, minutes. Guesses, within a factor of two."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpus.build_cost import build_cost
from corpus.readers import slice_name
from corpus.slice import SliceSpec
from stofm.errors import EnvironmentFault

GB = 10**9
BYTES_PER_ENTRY = 5.5  # truth 1.5, tokens stored once 1.8 and packed once 2, index and records 0.2
BYTES_PER_CELL = 60.0  # places, rows, lengths, three times
INPUT_BYTES_PER_ENTRY = 8.0  # where a file does not say how many entries it has: float32 counts and their columns, not compressed
MARGIN = 1.2


@dataclass(frozen=True)
class Estimate:
    """What one slice will take.

    Attributes
    ----------
    n_cells : int or None
        None where only reading would tell.
    n_entries : float
        Counts that are not zero.
    """

    slice_id: str
    input_bytes: int
    n_cells: int | None
    n_entries: float

    @property
    def output_bytes(self) -> float:
        return BYTES_PER_ENTRY * self.n_entries + BYTES_PER_CELL * (self.n_cells or 0)

    @property
    def minutes(self) -> float:
        return build_cost(self.n_entries).seconds / 60


def estimate(spec: SliceSpec) -> Estimate:
    """Estimate a slice by the size of its file, and by the shape of its matrix where the file tells it; 0 for what is not there."""
    path = Path(spec.path)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    n_bytes = sum(file.stat().st_size for file in files)
    n_cells, n_entries = _shape_of(path, spec.counts_layer) if path.suffix == ".h5ad" and path.is_file() else (None, None)
    return Estimate(slice_name(spec), n_bytes, n_cells, n_bytes / INPUT_BYTES_PER_ENTRY if n_entries is None else n_entries)


def require_space(folder: Path, specs: Iterable[SliceSpec], *, reserve_gb: float) -> None:
    """Raise `EnvironmentFault` unless the disk has room for these slices, a margin and the reserve."""
    needed = MARGIN * sum(estimate(spec).output_bytes for spec in specs) + reserve_gb * GB
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise EnvironmentFault(
            f"output {folder}: found {free / GB:.3g} GB free on its disk; expected {needed / GB:.3g} GB ({MARGIN:g} times the slices, and "
            f"{reserve_gb:g} GB to spare). Make space, choose another `out`, or lower `tasks.reserve_gb`."
        )


def plan_lines(specs: Iterable[SliceSpec], folder: Path, *, n_workers: int) -> list[str]:
    """Return the plan of a build for people: a line per slice, then totals."""
    found = [estimate(spec) for spec in specs]
    lines = [f"{one.slice_id}: {_cells(one)}, {one.n_entries / 1e6:.3g} M entries, {one.input_bytes / GB:.3g} GB in, "
             f"{one.output_bytes / GB:.3g} GB out, {one.minutes:.2g} min, {build_cost(one.n_entries).memory_mb / 1000:.2g} GB of memory"
             for one in found]  # fmt: skip
    disk = shutil.disk_usage(next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists()))
    minutes = sum(one.minutes for one in found) / n_workers
    n_in, n_out = sum(one.input_bytes for one in found), sum(one.output_bytes for one in found)
    lines.append(f"{len(found)} slices: {n_in / GB:.3g} GB in, {n_out / GB:.3g} GB out "
                 f"({disk.free / GB:.3g} GB free), about {max(minutes, 0.1):.2g} min by {n_workers} workers. Nothing was built.")  # fmt: skip
    return lines


def _shape_of(path: Path, layer: str | None) -> tuple[int | None, float | None]:
    """Cells and non-zero entries of the matrix of an .h5ad file; None where it cannot be told without reading."""
    import h5py

    try:
        with h5py.File(path) as file:
            matrix: Any = file[f"layers/{layer}" if layer else "X"]
            if isinstance(matrix, h5py.Dataset):
                return int(matrix.shape[0]), 0.3 * float(matrix.size)
            return int(matrix.attrs["shape"][0]), float(matrix["data"].shape[0])
    except (OSError, KeyError):  # a damaged file is named when it is read
        return None, None


def _cells(one: Estimate) -> str:
    return "cells unknown" if one.n_cells is None else f"{one.n_cells:,} cells"
