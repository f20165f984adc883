"""Files that are no AnnData, or of another format, are refused with the slice and its path."""

from __future__ import annotations

import anndata
import h5py
import numpy as np
import pytest
from anndata.tests.helpers import assert_equal
from scipy.sparse import csr_matrix

from corpus.readers import read_slice, read_table
from corpus.simulate import SimulationConfig, simulate_slice
from corpus.slice import SliceSpec
from stofm.errors import DataError


@pytest.fixture
def table() -> anndata.AnnData:
    return simulate_slice(SimulationConfig(n_cells=50, panel_sizes=[30]), 0)


def write_text(path, table):
    path.write_text("no hdf5")


def write_half(path, table):
    table.write_h5ad(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_other_hdf5(path, table):
    with h5py.File(path, "w") as file:
        file["obs"], file["X"] = [1, 2], [3, 4]


def write_newer(path, table):
    table.write_h5ad(path)
    with h5py.File(path, "a") as file:
        file["X"].attrs["encoding-type"] = "of_the_future"


@pytest.mark.filterwarnings("ignore::anndata.OldFormatWarning")
@pytest.mark.parametrize("write", [write_text, write_half, write_other_hdf5, write_newer])
def test_an_h5ad_that_is_none_is_refused(table, tmp_path, write):
    write(tmp_path / "bad.h5ad", table)
    with pytest.raises(DataError, match=r"slice 'bad' .*not readable as AnnData \(.*\); expected a whole \.h5ad file"):
        read_slice(SliceSpec(path=str(tmp_path / "bad.h5ad")))


def test_nothing_of_a_file_is_lost(table, tmp_path):
    table.raw = table.copy()
    table = table[:, :20].copy()
    table.layers["dense"], table.layers["csc"] = table.X.toarray(), table.X.tocsc()
    table.obsp["near"], table.varp["alike"], table.varm["loads"] = csr_matrix(np.eye(50)), np.eye(20), np.ones((20, 3))
    table.obsm["frame"] = table.obs.copy()
    table.uns["nested"] = {"list": np.arange(3), "text": "x", "sparse": csr_matrix(np.eye(2))}
    table.write_h5ad(tmp_path / "whole.h5ad")
    assert_equal(read_table(SliceSpec(path=str(tmp_path / "whole.h5ad"))), anndata.read_h5ad(tmp_path / "whole.h5ad"), exact=True)


@pytest.mark.parametrize(("name", "message"), [("none.h5ad", "no such file"), ("table.csv", r"found suffix '\.csv'; expected one of \.h5ad, \.zarr")])
def test_a_path_that_leads_nowhere_or_to_another_format_is_refused(tmp_path, name, message):
    (tmp_path / "table.csv").write_text("")
    with pytest.raises(DataError, match=message):
        read_slice(SliceSpec(path=str(tmp_path / name)))
