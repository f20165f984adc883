"""Slices that cannot be used: how each comes about, and what its line of error says was found and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np

from corpus.simulate import SimulationConfig, simulate_slice


def good_table() -> anndata.AnnData:
    return simulate_slice(SimulationConfig(n_cells=30, panel_sizes=[20]), 0)


def written(spoil: Callable[[anndata.AnnData], anndata.AnnData | None]) -> Callable[[Path], None]:
    """A maker of files that hold a good table, spoilt."""

    def make(path: Path) -> None:
        good = good_table()
        bad = spoil(good)
        (good if bad is None else bad).write_h5ad(path)

    return make


def with_count(value: float) -> Callable[[Path], None]:
    return written(lambda one: one.X.data.__setitem__(0, value))


def place_nowhere(one: anndata.AnnData) -> None:
    one.obsm["spatial"][7] = np.nan


def forget_unit(one: anndata.AnnData) -> None:
    one.obsm["spatial"] *= 100
    del one.uns["provenance"]["unit"]


def rename_genes(one: anndata.AnnData) -> None:
    one.var_names = [f"probe-{number}" for number in range(one.n_vars)]


def hdf5_of_something_else(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["temperatures"] = np.arange(5)


Makes = Callable[[Path], object]

# What is wrong -> how such a file is made, what its line says was found, and what to do.
BAD_SLICES: dict[str, tuple[Makes, str, str]] = {
    "missing file": (lambda path: None, "no such file", "Check the path"),
    "text": (lambda path: path.write_text("cell,gene\n"), "not readable as AnnData", "write_h5ad"),
    "truncated": (
        lambda path: (written(lambda one: None)(path), path.write_bytes(path.read_bytes()[:5000])),
        "not readable as AnnData",
        "write_h5ad",
    ),
    "hdf5 of something else": (hdf5_of_something_else, "not readable as AnnData", "write_h5ad"),
    "folder": (lambda path: path.mkdir(), "not readable as AnnData", "write_h5ad"),
    "no coordinates": (written(lambda one: one.obsm.clear()), "no coordinates", "spatial_key"),
    "NaN coordinates": (written(place_nowhere), "NaN or infinity in 1 cells, first in row 7", "Drop those cells"),
    "negative count": (with_count(-1), "1 entries that are no counts", "counts_layer"),
    "fractional count": (with_count(0.5), "1 entries that are no counts", "counts_layer"),
    "NaN count": (with_count(np.nan), "1 entries that are no counts", "counts_layer"),
    "no cells": (written(lambda one: one[:0].copy()), "0 cells", "expected"),
    "no genes": (written(lambda one: one[:, :0].copy()), "0 genes", "expected"),
    "no gene maps": (written(rename_genes), "none of the 20 genes maps", "gene_id_column"),
    "pixels": (written(lambda one: one.uns["provenance"].__setitem__("unit", "pixel")), "'pixel'", "--um-per-unit"),
    "no unit": (written(forget_unit), "declare no unit", "--um-per-unit"),
}
