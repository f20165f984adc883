"""SpatialData stores: a table placed by its own coordinates, or by the shapes that it annotates."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel

from corpus.readers import read_slice
from corpus.simulate import SimulationConfig, simulate_slice
from corpus.slice import SliceSpec
from stofm.errors import BadSlice, DataError

N = 40


@pytest.fixture
def table() -> anndata.AnnData:
    return simulate_slice(SimulationConfig(n_cells=N, panel_sizes=[30]), 0)


@pytest.fixture
def read(tmp_path):
    """Write tables and shapes as a SpatialData store and read it back as a slice."""

    def write_and_read(tables, shapes=None, **settings):
        with anndata.settings.override(auto_shard_zarr_v3=True):
            SpatialData(tables=tables, shapes=shapes or {}).write(tmp_path / "made.zarr")
        return read_slice(SliceSpec(path=str(tmp_path / "made.zarr"), **settings))

    return write_and_read


def placed_by_shapes(table: anndata.AnnData):
    """The table without coordinates, its rows in another order than the circles that it annotates."""
    places = table.obsm.pop("spatial")
    table.obs["region_key"], table.obs["instance"] = pd.Categorical(["cells"] * N), np.arange(N)[::-1]
    circles = ShapesModel.parse(places[::-1].copy(), geometry=0, radius=3.0, index=pd.Index(np.arange(N)))
    return TableModel.parse(table, region="cells", region_key="region_key", instance_key="instance"), circles, places


def test_a_table_with_coordinates_comes_back(table, read):
    st_slice = read({"table": TableModel.parse(table)})
    np.testing.assert_array_equal(st_slice.counts.toarray(), table.X.toarray())
    np.testing.assert_array_equal(st_slice.coords_um, table.obsm["spatial"])
    assert st_slice.labels["region"].tolist() == table.obs["region"].tolist()


def test_a_table_without_coordinates_is_placed_by_the_centroids_of_its_shapes(table, read):
    annotating, circles, places = placed_by_shapes(table)
    np.testing.assert_allclose(read({"table": annotating}, {"cells": circles}).coords_um, places)


def test_a_cell_without_a_shape_is_refused(table, read):
    annotating, circles, _ = placed_by_shapes(table)
    with pytest.raises(DataError, match="NaN or infinity in 5 cells"):
        read({"table": annotating}, {"cells": circles.iloc[:-5]})


@pytest.mark.filterwarnings("ignore:The table is annotating:UserWarning")
def test_a_table_whose_shapes_are_absent_is_refused(table, read):
    annotating, _, _ = placed_by_shapes(table)
    with pytest.raises(DataError, match=r"slice 'made' .*cells"):
        read({"table": annotating})


def test_a_table_without_coordinates_that_annotates_nothing_is_refused(table, read):
    del table.obsm["spatial"]
    with pytest.raises(DataError, match=r"slice 'made' .*spatial"):
        read({"table": TableModel.parse(table)})


def test_of_several_tables_one_has_to_be_named(table, read):
    tables = {"cells": TableModel.parse(table), "bins": TableModel.parse(table[:7].copy())}
    with pytest.raises(DataError, match=r"found tables \['bins', 'cells'\]; expected None. Name one of them with `table`"):
        read(tables)


def test_the_table_named_is_read(table, read):
    tables = {"cells": TableModel.parse(table), "bins": TableModel.parse(table[:7].copy())}
    assert read(tables, table="bins").n_cells == 7


def test_a_store_without_a_table_is_refused(table, read):
    _, circles, _ = placed_by_shapes(table)
    with pytest.raises(BadSlice, match="found no table; expected one with counts") as caught:
        read({}, {"cells": circles})
    assert caught.value.code == "NO_TABLE"


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_text("x")], ids=["empty folder", "file"])
def test_what_is_no_zarr_store_is_refused(tmp_path, make):
    make(tmp_path / "made.zarr")
    with pytest.raises(DataError, match=r"found no zarr store; expected a SpatialData \.zarr folder"):
        read_slice(SliceSpec(path=str(tmp_path / "made.zarr")))
