"""Readers: what a file holds becomes a `Slice`, or the message says what is missing and which setting names it."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

from corpus.readers import read_slice, slice_name
from corpus.simulate import SimulationConfig, simulate_slice
from corpus.slice import SliceSpec
from stofm.errors import DataError

N = 50


@pytest.fixture
def table() -> anndata.AnnData:
    return simulate_slice(SimulationConfig(n_cells=N, panel_sizes=[30]), 0)


@pytest.fixture
def read(tmp_path):
    """Write a table as .h5ad and read it back as a slice."""

    def write_and_read(table: anndata.AnnData, **settings):
        table.write_h5ad(tmp_path / "made.h5ad")
        return read_slice(SliceSpec(path=str(tmp_path / "made.h5ad"), **settings))

    return write_and_read


def test_a_whole_table_is_read_as_it_is(table, read):
    st_slice = read(table, labels={"zone": "region"}, donor="d1")
    assert (st_slice.slice_id, st_slice.species, st_slice.n_cells) == ("made", "human", N)
    assert st_slice.ensembl_ids.tolist() == table.var_names.tolist()
    np.testing.assert_array_equal(st_slice.counts.toarray(), table.X.toarray())
    np.testing.assert_array_equal(st_slice.coords_um, table.obsm["spatial"])
    assert {name: values.tolist() for name, values in st_slice.labels.items()} == {
        "cell_type": table.obs["cell_type"].tolist(), "region": table.obs["region"].tolist(), "zone": table.obs["region"].tolist()}  # fmt: skip
    assert st_slice.source == {
        "technology": "simulated", "tissue": "simulated", "donor": "d1", "um_per_unit": 1.0, "obs_unit": "cell", "counts_from": "X",
        "study": "", "license": ""}  # fmt: skip


def test_the_name_is_the_stem_with_only_letters_that_files_and_keys_allow():
    assert slice_name(SliceSpec(path="a/b c.v2.h5ad")) == "b_c_v2"
    assert slice_name(SliceSpec(path="a/b.h5ad", slice_id="mine")) == "mine"


@pytest.mark.parametrize(("unit", "factor", "um_per_unit"), [("mm", 1e-3, None), (None, 1.0, None), ("pixel", 2.0, 0.5)], ids=["mm", "none", "pixel"])
def test_coordinates_come_out_in_micrometres(table, read, unit, factor, um_per_unit):
    um = table.obsm["spatial"].copy()
    table.obsm["spatial"], table.uns = um * factor, {"spatial_unit": unit} if unit else {}
    np.testing.assert_allclose(read(table, um_per_unit=um_per_unit).coords_um, um)


def test_pixels_are_refused_with_the_slice_and_the_setting(table, read):
    table.uns = {"spatial_unit": "pixels"}
    with pytest.raises(DataError, match=r"slice 'made' \(.*made\.h5ad\): coordinates are declared as 'pixels'.*Set `um_per_unit`"):
        read(table)


def test_a_flat_third_axis_is_dropped_and_one_with_height_is_refused(table, read):
    flat = np.column_stack([table.obsm["spatial"], np.full(N, 7.0)])
    table.obsm["spatial"] = flat
    np.testing.assert_array_equal(read(table).coords_um, flat[:, :2])
    table.obsm["spatial"] = flat + np.arange(N)[:, None]
    with pytest.raises(DataError, match="have a varying z; expected one section per slice"):
        read(table)


@pytest.mark.parametrize(
    ("spoil", "settings", "message"),
    [
        (lambda t: t.obsm["spatial"].__setitem__((3, 1), np.nan), {}, "NaN or infinity in 1 cells, first in row 3"),
        (lambda t: t.obsm.pop("spatial"), {}, r"no coordinates: found obsm keys \[\]; expected 'spatial'. Set `spatial_key`"),
        (lambda t: t.X.data.__setitem__(0, -2), {}, "counts: found -2 among 1 entries"),
        (lambda t: t.X.data.__setitem__(0, 0.5), {}, "counts: found 0.5 among 1 entries"),
        (lambda t: setattr(t, "X", None), {}, "found no X"),
        (lambda t: setattr(t, "X", t.X.astype(bool)), {}, "expected numbers, dense or sparse"),
        (lambda t: None, {"counts_layer": "raw"}, r"found layers \[\]; expected 'raw'. Set `counts_layer`"),
        (lambda t: None, {"labels": {"region": "layer"}}, "labelled column 'layer' is absent: found obs columns"),
        (lambda t: None, {"gene_id_column": "ids"}, r"found var columns \[\]; expected 'ids'"),
        (lambda t: None, {"species": "mouse"}, "`species: mouse` is set, found human Ensembl ids"),
    ],
    ids=["nan", "no places", "negative", "fraction", "no X", "bool", "layer", "label", "id column", "species"],
)  # fmt: skip
def test_what_is_missing_or_wrong_is_named(table, read, spoil, settings, message):
    spoil(table)
    with pytest.raises(DataError, match=rf"slice 'made' .*{message}"):
        read(table, **settings)


def test_counts_come_from_the_layer_named_dense_or_sparse(table, read):
    counts = table.X.toarray()
    table.layers["raw"], table.X = counts, np.log1p(counts)
    np.testing.assert_array_equal(read(table, counts_layer="raw").counts.toarray(), counts)


def test_missing_labels_are_empty(table, read):
    table.obs["region"] = table.obs["region"].astype(object).where(np.arange(N) > 0, None).astype("category")
    assert read(table).labels["region"].tolist() == ["", *table.obs["region"].tolist()[1:]]
    del table.obs["region"], table.obs["cell_type"]
    assert read(table).labels == {}


@pytest.mark.parametrize(
    ("names", "column", "species", "ids"),
    [
        (["ENSG00000075624.17", "ENSG00000111640.9"], None, "human", ["ENSG00000075624", "ENSG00000111640"]),
        (["Actb", "Gad1"], ["ENSMUSG00000029580", "other"], "mouse", ["ENSMUSG00000029580", ""]),
        (["Actb", "Gad1"], None, "mouse", ["", ""]),
        (["ACTB", "GAD1"], None, "human", ["", ""]),
    ],
    ids=["version", "column", "mouse symbols", "human symbols"],
)
def test_gene_ids_and_species_are_found_by_content(table, read, names, column, species, ids):
    table = table[:, :2].copy()
    table.var_names, table.uns = names, {}
    if column:
        table.var["gene_ids"] = column
    st_slice = read(table)
    assert (st_slice.species, st_slice.ensembl_ids.tolist()) == (species, ids)


def test_genes_of_two_species_are_refused(table, read):
    table.var_names = ["ENSMUSG00000029580", *table.var_names[1:]]
    with pytest.raises(DataError, match="found 29 human and 1 mouse Ensembl ids; expected one species per slice"):
        read(table)


@pytest.mark.parametrize("uns", [{"provenance": "GEO"}, {"spatial": {}}, {}], ids=["provenance in words", "foreign", "empty"])
def test_notes_of_others_in_uns_do_no_harm(table, read, uns):
    table.uns = uns
    assert read(table).source["technology"] == "unknown"


def test_coordinates_may_be_a_data_frame(table, read):
    coords = table.obsm["spatial"]
    table.obsm["spatial"] = pd.DataFrame(coords, index=table.obs_names, columns=["x", "y"])
    np.testing.assert_array_equal(read(table).coords_um, coords)
