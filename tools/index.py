"""`stofm index build`, `stofm index query` and `stofm index plan`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from corpus.readers import open_table, read_table, slice_name
from corpus.readers.anndata_h5ad import close
from corpus.readers.table import find_labels, find_places, provenance_of
from corpus.slice import IntArray, SliceSpec
from downstream.embedding import require_embedded
from downstream.search import INDEX_KIND, Embedded, IndexConfig, build_index, index_bytes, kind_for, open_index, require_index_of
from downstream.search_plan import plan_index
from stofm.config import parse_config
from stofm.durable import MARKER, check_folder, replacing
from stofm.errors import ConfigError, DataError
from stofm.fields import UNS_STOFM
from tools.console import say, tracking
from tools.outputs import require_new
from tools.specs import slice_specs


def run_build(paths: Sequence[Path], out: Path, *, overwrite: bool, **settings: object) -> None:
    """Build an index of embedded slices."""
    check_folder(out, INDEX_KIND)
    require_new([out / MARKER], overwrite=overwrite)
    config, specs = parse_config(IndexConfig, settings, where="options"), slice_specs(paths)
    weights: str | None = None
    for spec in specs:
        weights = _read(spec, weights)[1]
    assert weights is not None, "the command line takes one slice or more"
    with tracking(f"indexing {len(specs)} slices"):
        meta = build_index(out, [partial(_read_embedded, spec, weights) for spec in specs], weights, config)
    n = sum(meta.n_cells)
    say(f"index: {out} ({meta.kind}, {n:,} cells of {len(specs)} slices, {index_bytes(out) / n:,.0f} bytes a cell, recall@10 {meta.recall_at_10:.3f} "
        f"of exact search{f' at effort {meta.effort}' if meta.effort else ''})")  # fmt: skip


def run_query(
    path: Path, index_folder: Path, out: Path, *, where: str | None, rows: str | None, region: bool, k: int, other_slices: bool, overwrite: bool
) -> None:
    """Write the cells, or the pieces of tissue, that are most like some cells of an embedded slice, as CSV."""
    require_new([out], overwrite=overwrite)
    spec = slice_specs([path])[0]
    index, name, table = open_index(index_folder), slice_name(spec), read_table(spec)
    cell_repr = require_embedded(table, name)
    require_index_of(index, str(table.uns[UNS_STOFM]["weights_sha256"]), name)
    chosen = np.arange(table.n_obs)
    if where is not None:
        column, equals, value = where.partition("=")
        if not equals:
            raise ConfigError(f"--where {where!r}: found no '='; expected column=value, for example region=L1.")
        chosen = np.flatnonzero(find_labels(table, {"where": column})["where"] == value)
    if rows is not None:
        chosen = _row_numbers(rows, table.n_obs)
    chosen = chosen[np.isfinite(cell_repr[chosen]).all(axis=1)]
    if not len(chosen):
        raise DataError(f"slice {name!r}: found no embedded cell among those chosen; expected some. Correct --where or --rows.")
    without = name if other_slices else None
    with tracking(f"{name}: searching for {'a region of ' if region else ''}{len(chosen)} cells among {sum(index.meta.n_cells):,}"):
        if region:
            found, similarity = index.nearest_patches(cell_repr[chosen], k, without=without)
            x_um, y_um = index.patches["centres_um"][found].T
            result = pd.DataFrame({"rank": np.arange(1, len(found) + 1), "slice": np.array(index.meta.slices)[index.patches["slices"][found]],
                                   "x_um": x_um, "y_um": y_um, "n_cells": index.patches["sizes"][found], "similarity": similarity})  # fmt: skip
        else:
            found, similarity = index.nearest_cells(cell_repr[chosen], k, without=without)
            is_found = found >= 0
            numbers, of_slice = index.place(found[is_found])
            query, rank = (np.broadcast_to(one, found.shape)[is_found] for one in (chosen[:, None], np.arange(1, k + 1)))
            result = pd.DataFrame({"query_row": query, "rank": rank, "slice": np.array(index.meta.slices)[numbers], "row": of_slice,
                                   "similarity": similarity[is_found]})  # fmt: skip
    with replacing(out) as aside:
        result.to_csv(aside, index=False, float_format="%.6g")
    counts = result["slice"].value_counts().head(3)
    say(f"{out}: {len(result)} hits; most in " + ", ".join(f"{one} ({n})" for one, n in counts.items()))


def run_plan(n_vectors: int) -> None:
    """Say what an index of so many cells would take on disk and in memory, by kind."""
    with tracking("measuring bytes per vector on small indexes"):
        plans = plan_index(n_vectors)
    say(f"{n_vectors:,} cells; {kind_for(n_vectors)} is what `stofm index build` would choose")
    for plan in plans:
        lists = f", {plan.n_lists:,} lists" if plan.n_lists else ""
        say(f"  {plan.kind:<6}{plan.bytes_per_vector:>8.1f} bytes a vector{lists}; {plan.disk_bytes / 1e9:,.1f} GB on disk with the vectors, "
            f"{plan.memory_bytes / 1e9:,.1f} GB of memory to build{'  <- chosen' if plan.is_chosen else ''}")  # fmt: skip


def _row_numbers(text: str, n_cells: int) -> IntArray:
    try:
        rows = np.array([int(one) for one in text.split(",")], np.int64)
    except ValueError as error:
        raise ConfigError(f"--rows {text!r}: expected whole numbers with commas between, for example 0,17,29.") from error
    if (rows < 0).any() or (rows >= n_cells).any():
        raise ConfigError(f"--rows {text!r}: found a row outside 0 to {n_cells - 1}; expected rows of the slice.")
    return rows


def _read(spec: SliceSpec, weights: str | None) -> tuple[Embedded, str]:
    name, table = slice_name(spec), open_table(spec)
    try:
        cell_repr = require_embedded(table, name, weights_sha256=weights)
        receipt = table.uns[UNS_STOFM]
        is_converted = "um_per_unit" in provenance_of(table.uns)  # by the reader of an instrument's folder
        places = find_places(table, json.loads(receipt["slice"])["spatial_key"])[:, :2] * (1.0 if is_converted else float(receipt["um_per_unit"]))
        return Embedded(name, cell_repr, places), str(receipt["weights_sha256"])
    finally:
        close(table)


def _read_embedded(spec: SliceSpec, weights: str) -> Embedded:
    return _read(spec, weights)[0]
