"""However a file stores a slice, the verbs read the same slice from it."""

from __future__ import annotations

from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
from cli import succeed
from matplotlib.image import imread
from spatialdata import SpatialData
from spatialdata.models import TableModel

from corpus.readers import read_table
from corpus.slice import SliceSpec


def in_spatialdata(table: anndata.AnnData, folder: Path) -> Path:
    with anndata.settings.override(auto_shard_zarr_v3=True):
        SpatialData(tables={"table": TableModel.parse(table)}).write(folder / "slice.zarr")
    return folder / "slice.zarr"


def under_another_key(table: anndata.AnnData, folder: Path) -> Path:
    table.obsm["xy"] = table.obsm.pop("spatial")
    table.write_h5ad(folder / "slice.h5ad")
    return folder / "slice.h5ad"


def with_a_flat_z(table: anndata.AnnData, folder: Path) -> Path:
    table.obsm["spatial"] = np.column_stack([table.obsm["spatial"], np.full(table.n_obs, 5.0)])
    table.write_h5ad(folder / "slice.h5ad")
    return folder / "slice.h5ad"


def as_sparse_float16(table: anndata.AnnData, folder: Path) -> Path:
    table.write_h5ad(folder / "slice.h5ad")
    with h5py.File(folder / "slice.h5ad", "r+") as file:
        counts = file["X/data"][:].astype(np.float16)
        del file["X/data"]
        file["X/data"] = counts
    return folder / "slice.h5ad"


STORED = {
    "SpatialData": (in_spatialdata, []),
    "key xy": (under_another_key, ["--spatial-key", "xy"]),
    "flat z": (with_a_flat_z, []),
    "sparse float16": (as_sparse_float16, []),
}


@pytest.mark.parametrize("form", STORED)
def test_the_same_slice_in_another_form_gets_the_same_embedding_and_regions(form, simulated_paths, tiny_run, embedded, region_head, tmp_path):
    store, options = STORED[form]
    path = store(anndata.read_h5ad(simulated_paths[2]), tmp_path)
    succeed("embed", path, "--model", tiny_run / "model", "--out", tmp_path / "embedded", *options)
    (written,) = (tmp_path / "embedded").glob("slice.*")
    assert written.suffix == path.suffix
    back, usual = read_table(SliceSpec(path=str(written), um_per_unit=1.0)), anndata.read_h5ad(embedded[2])
    np.testing.assert_array_equal(back.obsm["X_stofm"], usual.obsm["X_stofm"])

    for name, file in (("here", written), ("usual", embedded[2])):
        succeed("segment", "predict", file, "--head", region_head, "--out", tmp_path / name)
    mine, theirs = (anndata.read_h5ad(tmp_path / file) for file in ("here/slice.h5ad", "usual/slice_2.h5ad"))
    assert mine.obs["stofm_region"].tolist() == theirs.obs["stofm_region"].tolist()
    np.testing.assert_array_equal(imread(tmp_path / "here/slice_region.png"), imread(tmp_path / "usual/slice_2_region.png"))
