"""Faults that real files have: each is mended and told, or refused under its code with what to do; the file is never changed."""

from __future__ import annotations

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_matrix, csr_matrix

from corpus.qc import QualityConfig
from corpus.readers import read_slice, read_table
from corpus.simulate import SimulationConfig, simulate_slice
from stofm.errors import BadSlice

N = 200


@pytest.fixture
def table() -> anndata.AnnData:
    return simulate_slice(SimulationConfig(n_cells=N, panel_sizes=[30]), 0)


def on_a_line(t):
    t.obsm["spatial"][:, 1] = 5.0


def in_two_planes(t):
    t.obsm["spatial"] = np.column_stack([t.obsm["spatial"], np.arange(N) % 2 * 10.0])


def one_cell_too_few(t):
    t.uns["provenance"]["technology"] = "Xenium"
    return t[1:].copy()


def far_apart(t):
    t.obsm["spatial"] *= 1000


def fields_at_the_origin(t):
    t.obs["fov"] = np.arange(N) % 4
    t.obsm["spatial"] -= t.obsm["spatial"].min(axis=0)


def lose_places(t):
    t.obsm["spatial"][:3] = np.inf


def name_like_a_control(t):
    t.var_names = ["Blank-1", *t.var_names[1:]]
    t.var["gene_ids"] = ["ENSG00000075624"] * 30


def on_a_point_of_no_unit(table: anndata.AnnData) -> None:
    table.obsm["spatial"] = np.ones((N, 2))
    del table.uns["provenance"]["unit"]


# fault -> how it is planted, its code, what the line says was found and what it says to do
REFUSED = {
    "no cells": (lambda t: t[:0].copy(), "EMPTY", "found 0 cells", "Remove it"),
    "only empty cells": (lambda t: setattr(t, "X", t.X * 0), "EMPTY", "none of them left: no counts", "Remove it"),
    "few cells": (one_cell_too_few, "TOO_SMALL", "found 199 cells, 199 of them left", "Remove it"),
    "no places": (lambda t: t.obsm.clear(), "NO_COORDS", "found obsm keys", "Set `spatial_key`"),
    "one axis": (lambda t: t.obsm.update(spatial=np.ones((N, 1))), "NO_COORDS", r"shape \(200, 1\)", "Keep x and y"),
    "words for places": (lambda t: t.obsm.update(spatial=pd.DataFrame({"x": ["a"] * N}, index=t.obs_names)), "NO_COORDS", "no numbers", "expected"),
    "many NaN places": (lose_places, "NO_COORDS", "NaN or infinity in 3 cells, first in row 0", "Drop those cells"),
    "one line": (on_a_line, "DEGENERATE_GEOMETRY", "all 200 cells lie on one line", "Check that x and y"),
    "one point": (lambda t: t.obsm.update(spatial=np.ones((N, 2))), "DEGENERATE_GEOMETRY", "all 200 cells lie on one point", "Check that x and y"),
    "one point of no unit": (on_a_point_of_no_unit, "DEGENERATE_GEOMETRY", "all 200 cells lie on one point", "Check that x and y"),
    "two sections": (in_two_planes, "MULTI_SECTION", "coordinates have a varying z", "Set `section_key`"),
    "millimetres as um": (far_apart, "UNIT_SUSPECT", "um apart", "Set `um_per_unit`"),
    "pixels": (lambda t: t.uns["provenance"].update(unit="pixel"), "UNIT_UNKNOWN", "declared as 'pixel'", "Set `um_per_unit`"),
    "local places": (fields_at_the_origin, "FOV_OVERLAP", "lie on top of each other", "Set `spatial_key`"),
    "log counts": (lambda t: setattr(t, "X", t.X.log1p()), "NOT_COUNTS", "are no counts", "`counts_layer`"),
    "negative counts": (lambda t: setattr(t, "X", -t.X), "NOT_COUNTS", "are no counts", "`counts_layer`"),
    "two species": (lambda t: setattr(t, "var_names", ["ENSMUSG00000029580", *t.var_names[1:]]), "MIXED_SPECIES", "1 mouse", "Split"),
    "bins": (lambda t: t.uns.update(bin_type="bins"), "NOT_CELLS", "square bins", "Segment the cells"),
    "control that is a gene": (name_like_a_control, "CONTROL_IS_GENE", "'Blank-1' is named like a control", "Correct"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_a_fault_is_refused_under_its_code(fault, table, write):
    plant, code, found, remedy = REFUSED[fault]
    changed = plant(table)
    with pytest.raises(BadSlice, match=rf"slice 'made' .*{found}.*{remedy}") as refusal:
        read_slice(write(table if changed is None else changed), QualityConfig())
    assert refusal.value.code == code


def test_a_slice_of_the_least_size_is_taken(table, write):
    table.uns["provenance"]["technology"] = "Xenium"
    assert read_slice(write(table), QualityConfig()).n_cells == N


@pytest.mark.parametrize("place", ["counts", "raw_counts", "raw"])
@pytest.mark.parametrize("form", [np.asarray, csr_matrix, csc_matrix], ids=["dense", "csr", "csc"])
def test_counts_beside_a_normalised_x_are_found(place, form, table, write):
    counts, names = table.X.toarray(), table.var_names.to_numpy()
    if place == "raw":
        table.raw = anndata.AnnData(X=form(counts), var=table.var, obs=table.obs)
        table = table[:, :10].copy()  # raw often has more genes
    else:
        table.layers[place] = form(counts)
    table.X = table.X.astype(np.float32) * 0.37
    st_slice = read_slice(write(table))
    np.testing.assert_array_equal(st_slice.counts.toarray(), counts)
    np.testing.assert_array_equal(st_slice.gene_names, names)
    assert st_slice.source["counts_from"] == ("raw" if place == "raw" else f"layers[{place!r}]")


def test_x_goes_before_other_counts(table, write):
    table.layers["counts"] = table.X * 2
    st_slice = read_slice(write(table))
    np.testing.assert_array_equal(st_slice.counts.toarray(), table.X.toarray())
    assert st_slice.source["counts_from"] == "X"


def test_a_few_cells_without_a_place_are_dropped(table, write):
    table.obsm["spatial"][[4, 9], [0, 1]] = np.nan, np.inf
    st_slice = read_slice(write(table))
    assert st_slice.dropped == {"no place": 2}
    assert {4, 9}.isdisjoint(st_slice.source_rows)


def test_cells_without_counts_of_genes_are_dropped(table, write):
    counts = table.X.toarray()
    counts[[3, 17], 1:] = 0
    table.X = counts
    table.var_names = ["NegPrb1", *table.var_names[1:]]
    assert {reason: rows.tolist() for reason, rows in read_slice(write(table)).dropped_rows.items()} == {"no counts": [3, 17]}


@pytest.mark.parametrize(
    "name",
    ["NegPrb3", "NegControlProbe_00042", "NegControlCodeword_0500", "Negative Control Probe", "SystemControl21", "FalseCode1", "Blank-12",
     "BLANK_0070", "UnassignedCodeword_0001", "DeprecatedCodeword_0018", "Intergenic_Region_1", "antisense_PROKR2", "GenomicControl1"],
)  # fmt: skip
def test_controls_are_moved_beside_the_counts_however_they_are_spelt(name, table, write):
    table.var_names = ["NEGR1", name, *table.var_names[2:]]
    st_slice = read_slice(write(table))
    assert st_slice.control_names.tolist() == [name]
    assert "NEGR1" in st_slice.gene_names
    np.testing.assert_array_equal(st_slice.controls.toarray()[:, 0], table.X.toarray()[st_slice.source_rows, 1])
    np.testing.assert_array_equal(st_slice.counts.toarray(), np.delete(table.X.toarray(), 1, axis=1)[st_slice.source_rows])


@pytest.mark.filterwarnings("ignore:.*names are not unique:UserWarning")
def test_names_that_occur_twice_do_no_harm(table, write):
    table.var_names = ["ACTB", "ACTB", *table.var_names[2:]]
    table.obs_names = ["cell"] * N
    st_slice = read_slice(write(table))
    assert st_slice.n_cells == N
    assert (st_slice.gene_names == "ACTB").sum() == 2


@pytest.mark.parametrize("dtype", ["f2", "f8", "i8", "u2"])
def test_numbers_of_any_width_are_counts(dtype, table, write):
    counts = table.X.toarray()
    table.X = counts.astype(dtype)
    np.testing.assert_array_equal(read_slice(write(table)).counts.toarray(), counts)


def test_a_file_of_an_older_anndata_is_read(table, write):
    spec = write(table)
    with h5py.File(spec.path, "a") as file:
        del file.attrs["encoding-type"], file.attrs["encoding-version"]
    assert read_slice(spec).n_cells == N


def test_reading_leaves_no_file_open(table, write):
    for _ in range(2):
        read_slice(spec := write(table))
    read_table(spec)
    write(table)
