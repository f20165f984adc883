"""Vendor readers: of every layout come the counts of its genes, its places in micrometres, its controls aside and what it measured."""

from __future__ import annotations

import errno
import gzip
import json
import shutil
from typing import get_args

import anndata
import numpy as np
import pytest
import vendor_layouts
from vendor_layouts import GENES, LAYOUTS, measured

from corpus.readers import LAYOUTS as FOLDER_LAYOUTS
from corpus.readers import SUFFIXES, TECHNOLOGIES, read_slice, read_table, technology_of
from corpus.slice import SliceSpec, Technology
from stofm.errors import BadSlice

SEEN = measured()


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return LAYOUTS[request.param]


@pytest.fixture
def spec(layout, tmp_path) -> SliceSpec:
    return SliceSpec(path=str(layout.write(tmp_path, SEEN)), slice_id="made", **layout.settings)


def test_counts_are_those_of_genes_and_places_are_micrometres(spec, layout):
    st_slice = read_slice(spec)
    order = [st_slice.gene_names.tolist().index(gene) for gene in GENES]
    assert sorted(st_slice.gene_names) == sorted(GENES)
    np.testing.assert_array_equal(st_slice.counts.toarray()[:, order], SEEN.counts)
    np.testing.assert_allclose(st_slice.coords_um, SEEN.coords_um, atol=1e-9)
    assert st_slice.source["um_per_unit"] == pytest.approx(layout.um_per_unit)
    assert st_slice.dropped == {}


def test_controls_are_kept_beside_the_counts(spec, layout):
    st_slice = read_slice(spec)
    assert tuple(st_slice.control_names) == layout.controls
    np.testing.assert_array_equal(st_slice.controls.toarray(), SEEN.controls[:, : len(layout.controls)])


def test_a_slice_says_what_it_was_measured_with_and_what_its_places_are(spec, layout):
    assert technology_of(spec) == layout.technology
    source = read_slice(spec).source
    assert source["obs_unit"] == layout.obs_unit
    assert source["technology"] != "unknown"


def test_a_scale_that_the_user_sets_goes_before_the_vendors(spec, layout):
    doubled = spec.model_copy(update={"um_per_unit": 2 * layout.um_per_unit})
    np.testing.assert_allclose(read_slice(doubled).coords_um, 2 * SEEN.coords_um)


def test_a_table_can_be_written_and_read_again_as_any_other(spec, tmp_path):
    first = read_slice(spec)
    read_table(spec).write_h5ad(tmp_path / "again.h5ad")
    again = read_slice(SliceSpec(path=str(tmp_path / "again.h5ad")))
    np.testing.assert_array_equal(again.counts.toarray(), first.counts.toarray())
    np.testing.assert_array_equal(again.coords_um, first.coords_um)
    np.testing.assert_array_equal(again.controls.toarray(), first.controls.toarray())


def test_the_tables_of_technologies_and_layouts_are_whole():
    assert set(TECHNOLOGIES) == set(get_args(Technology))
    assert set(FOLDER_LAYOUTS) | {*SUFFIXES.values(), "stocorpus"} == set(TECHNOLOGIES)
    assert {one.technology for one in LAYOUTS.values()} == set(TECHNOLOGIES) - {"anndata", "spatialdata"}


def test_files_of_two_technologies_in_a_folder_are_refused_with_both(tmp_path):
    vendor_layouts.cosmx(tmp_path, SEEN)
    vendor_layouts.merscope_2023(tmp_path, SEEN)
    with pytest.raises(BadSlice, match=r"found files of merscope and cosmx; expected those of one of xenium, .* Set `technology`") as refusal:
        read_slice(SliceSpec(path=str(tmp_path)))
    assert refusal.value.code == "LAYOUT_AMBIGUOUS"
    assert read_slice(SliceSpec(path=str(tmp_path), technology="cosmx")).source["technology"] == "CosMx"


def test_a_folder_of_nothing_known_is_refused_with_the_list(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(BadSlice, match="found files of no known layout; expected those of one of xenium, merscope") as refusal:
        read_slice(SliceSpec(path=str(tmp_path)))
    assert refusal.value.code == "LAYOUT_UNKNOWN"


def test_two_segmentations_in_a_folder_are_refused_with_their_names(tmp_path):
    vendor_layouts.merscope_cellpose(tmp_path, SEEN)
    shutil.copytree(tmp_path / "Cellpose", tmp_path / "Cellpose2")
    with pytest.raises(BadSlice, match=r"found 2 files like .*Cellpose2/cellpose_cell_by_gene.csv.*Give the folder of one") as refusal:
        read_slice(SliceSpec(path=str(tmp_path)))
    assert refusal.value.code == "LAYOUT_AMBIGUOUS"


def test_a_missing_file_of_a_layout_is_named(tmp_path):
    vendor_layouts.xenium_h5(tmp_path, SEEN)
    (tmp_path / "cells.parquet").unlink()
    with pytest.raises(BadSlice, match=r"found no file like .*cells\.parquet"):
        read_slice(SliceSpec(path=str(tmp_path), technology="xenium"))


DAMAGES = [
    (vendor_layouts.xenium_h5, "cell_feature_matrix.h5"),
    (vendor_layouts.xenium_h5, "cells.parquet"),
    (vendor_layouts.xenium_folder, "cells.csv.gz"),
    (vendor_layouts.stereoseq_gef, "feature_expression/SS200000135TL_D1.cellbin.gef"),
    (vendor_layouts.visium_v1, "spatial/scalefactors_json.json"),
    (vendor_layouts.visium_hd, "segmented_outputs/cell_segmentations.geojson"),
]


@pytest.mark.parametrize(("write", "name"), DAMAGES, ids=[name for _, name in DAMAGES])
def test_a_damaged_file_is_unreadable_input(write, name, tmp_path):
    write(tmp_path, SEEN)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
    with pytest.raises(BadSlice, match=r"slice 'made' .*: not readable as output of") as refusal:
        read_slice(SliceSpec(path=str(tmp_path), slice_id="made"))
    assert refusal.value.code == "INPUT_UNREADABLE"


HDF5_TEXT = "Can't read data (file read failed: errno = 5, error message = 'Input/output error')"


@pytest.mark.parametrize(
    "fault",
    [OSError(errno.EIO, "input/output"), OSError(errno.ESTALE, "stale"), OSError(HDF5_TEXT), MemoryError()],
    ids=["io", "stale", "hdf5", "memory"],
)
def test_a_fault_of_the_machine_is_not_laid_on_the_slice(tmp_path, monkeypatch, fault):
    vendor_layouts.xenium_h5(tmp_path, SEEN)

    def fail(*_, **__):
        raise fault

    monkeypatch.setattr("h5py.File", fail)
    with pytest.raises(type(fault)) as raised:
        read_slice(SliceSpec(path=str(tmp_path)))
    assert raised.value is fault


def test_cells_of_the_matrix_without_a_place_are_dropped_and_counted(tmp_path):
    seen = measured(n_cells=300)
    vendor_layouts.merscope_2023(tmp_path, seen)
    lines = (tmp_path / "cell_metadata.csv").read_text().splitlines()
    (tmp_path / "cell_metadata.csv").write_text("\n".join(lines[:-2]) + "\n")  # those of the matrix's first two cells
    st_slice = read_slice(SliceSpec(path=str(tmp_path)))
    assert st_slice.dropped == {"no place": 2}
    np.testing.assert_array_equal(st_slice.source_rows, np.arange(2, 300))


def test_long_cell_ids_stay_apart(tmp_path):
    table = read_table(SliceSpec(path=str(vendor_layouts.merscope_2021(tmp_path, SEEN))))
    assert table.obs_names.is_unique
    assert table.obs_names[0] == "103327291694389284070574461648020091166"


def test_local_places_of_fields_of_view_are_refused(tmp_path):
    path = vendor_layouts.cosmx(tmp_path, measured(n_cells=200)) / "Run1_metadata_file.csv"
    path.write_text(path.read_text().replace("global", "elsewhere").replace("local", "global"))
    with pytest.raises(BadSlice, match=r"fields of view named in obs\['fov'\] lie on top of each other") as refusal:
        read_slice(SliceSpec(path=str(tmp_path)))
    assert refusal.value.code == "FOV_OVERLAP"


def test_seekspace_without_a_scale_is_refused(tmp_path):
    with pytest.raises(BadSlice, match="Set `um_per_unit`") as refusal:
        read_slice(SliceSpec(path=str(vendor_layouts.seekspace(tmp_path, SEEN))))
    assert refusal.value.code == "UNIT_UNKNOWN"


BINS = {"gem": vendor_layouts.stereoseq_bins, "gef": vendor_layouts.stereoseq_bin_gef, "visium_hd": vendor_layouts.visium_hd_bins}


@pytest.mark.parametrize("write", BINS.values(), ids=BINS)
def test_square_bins_are_no_cells_unless_asked_for(write, tmp_path):
    spec = SliceSpec(path=str(write(tmp_path, SEEN)))
    with pytest.raises(BadSlice, match=r"expected .*Segment the cells.* or set `bin_size`") as refusal:
        read_slice(spec)
    assert refusal.value.code == "NOT_CELLS"
    bins = read_slice(spec.model_copy(update={"bin_size": 8}))
    assert bins.source["obs_unit"] == "bin"
    assert bins.counts.sum() == SEEN.counts.sum()


@pytest.mark.parametrize("kind", ["gem", "gef"])
def test_stereoseq_bins_lie_at_the_middle_of_their_dnbs(kind, tmp_path):
    bins = read_slice(SliceSpec(path=str(BINS[kind](tmp_path, SEEN)), bin_size=20))
    squares, square_of = np.unique((SEEN.coords_um / 0.5).astype(int) // 20, axis=0, return_inverse=True)
    np.testing.assert_allclose(bins.coords_um, (squares + 0.5) * 20 * 0.5)
    order = [bins.gene_names.tolist().index(gene) for gene in GENES]
    np.testing.assert_array_equal(bins.counts.toarray()[:, order], np.eye(len(squares))[square_of.ravel()].T @ SEEN.counts)


def test_a_bin_size_that_was_not_written_is_refused(tmp_path):
    with pytest.raises(BadSlice, match="found no binned_outputs/square_016um"):
        read_slice(SliceSpec(path=str(vendor_layouts.visium_hd(tmp_path, SEEN)), bin_size=16))


def test_an_anndata_of_bins_is_refused(tmp_path):
    path = vendor_layouts.stereoseq_h5ad(tmp_path, SEEN) / "SS200000135TL_D1.cellbin_1.0.h5ad"
    table = anndata.read_h5ad(path)
    table.uns.update(bin_type="bins", bin_size=50)
    table.write_h5ad(path)
    with pytest.raises(BadSlice, match=r"found square bins \(bin_size 50\); expected cells"):
        read_slice(SliceSpec(path=str(tmp_path)))


def test_of_several_places_in_a_stocorpus_file_one_has_to_be_named(tmp_path):
    path = vendor_layouts.stocorpus(tmp_path, SEEN)
    table = anndata.read_h5ad(path)
    table.obsm["spatial_local"] = table.obsm["X_Spatial_um"] - 7
    table.write_h5ad(path)
    with pytest.raises(BadSlice, match=r"found obsm keys \['X_Spatial_um', 'spatial_local'\].*Set `spatial_key`") as refusal:
        read_slice(SliceSpec(path=str(path)))
    assert refusal.value.code == "NO_COORDS"
    np.testing.assert_allclose(read_slice(SliceSpec(path=str(path), spatial_key="spatial_local")).coords_um, SEEN.coords_um - 7)


REAL = {  # folder -> technology, cells, genes, controls, what the places are of
    "xenium_v1": ("Xenium", 526, 27, 3, "cell"),
    "xenium_v1_mtx_subset": ("Xenium", 7440, 313, 0, "cell"),
    "merscope_2021_hdf5": ("MERSCOPE", 96, 347, 38, "cell"),  # 4 of its 100 cells are empty
    "merscope_cellbound": ("MERSCOPE", 1058, 49, 39, "cell"),
    "merscope_cellbound_cellpose": ("MERSCOPE", 1058, 49, 39, "cell"),
    "cosmx_flat": ("CosMx", 27, 950, 10, "cell"),
    "slideseq_csv": ("Slide-seqV2", 100, 378, 0, "bead"),
    "visium_toy_sample01": ("Visium", 12, 5, 0, "spot"),
    "visium_toy_sample02": ("Visium", 13, 5, 0, "spot"),
}


@pytest.mark.parametrize("name", REAL)
def test_real_outputs_are_read(shared_data, name):
    st_slice = read_slice(SliceSpec(path=str(shared_data / "data/vendor" / name)))
    found = (st_slice.source["technology"], *st_slice.counts.shape, len(st_slice.control_names), st_slice.source["obs_unit"])
    assert found == REAL[name]


def test_a_real_gem_without_cells_is_refused(shared_data):
    with pytest.raises(BadSlice, match="found DNBs without cells") as refusal:
        read_slice(SliceSpec(path=str(shared_data / "data/vendor/stereoseq_gem")))
    assert refusal.value.code == "NOT_CELLS"


def test_the_pitch_of_a_real_visium_slide_is_a_tenth_of_a_millimetre(shared_data):
    folder = shared_data / "data/vendor/visium_toy_sample01/outs"
    scale = json.loads((folder / "spatial/scalefactors_json.json").read_text())["spot_diameter_fullres"]
    assert read_slice(SliceSpec(path=str(folder))).source["um_per_unit"] == pytest.approx(65 / scale)
    assert 290 * 65 / scale == pytest.approx(100, rel=1e-3)  # two spots of a row lie 290 pixels apart


def test_a_real_gem_in_bins_keeps_every_molecule(shared_data):
    path = next((shared_data / "data/vendor/stereoseq_gem").glob("*.gem.gz"))
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()[1:]
    assert read_slice(SliceSpec(path=str(path), bin_size=50)).counts.sum() == sum(int(line.split("\t")[3]) for line in lines)
