"""Sections in one file: a slice each where the user names what tells them apart, refused where they lie on top of each other."""

from __future__ import annotations

import anndata
import numpy as np
import pytest

from corpus.readers import read_slice, read_slices, split_sections
from corpus.readers.sections import overlap_of_boxes
from corpus.simulate import SimulationConfig, simulate_slice
from stofm.errors import BadSlice

N = 60
HALF = np.arange(N) % 2


@pytest.fixture
def table() -> anndata.AnnData:
    return simulate_slice(SimulationConfig(n_cells=N, panel_sizes=[30]), 0)


def with_z(table: anndata.AnnData) -> anndata.AnnData:
    table.obsm["spatial"] = np.column_stack([table.obsm["spatial"], HALF * 10.0])
    return table


def with_column(table: anndata.AnnData) -> anndata.AnnData:
    table.obs["section_id"] = np.array(["a 1", "b 2"])[HALF]
    return table


@pytest.mark.parametrize(
    ("change", "key", "names"), [(with_z, "z", ["made-0", "made-10"]), (with_column, "section_id", ["made-a_1", "made-b_2"])], ids=["z", "column"]
)
def test_each_section_is_a_slice_of_its_rows(table, write, change, key, names):
    spec = write(change(table), section_key=key)
    slices = read_slices(spec)
    assert [one.slice_id for one in slices] == names
    for number, one in enumerate(slices):
        rows = np.flatnonzero(number == HALF)
        np.testing.assert_array_equal(one.source_rows, rows)
        assert one.source["section"] == ["0", "10", "a 1", "b 2"][number + 2 * (key != "z")]
        np.testing.assert_array_equal(one.counts.toarray(), table.X.toarray()[rows])
        np.testing.assert_array_equal(one.coords_um, table.obsm["spatial"][rows, :2])
        np.testing.assert_array_equal(one.labels["region"], table.obs["region"].to_numpy()[rows])


def test_specifications_of_sections_stand_for_themselves(table, write):
    spec = write(with_column(table), section_key="section_id")
    first, second = split_sections(spec)
    assert (first.section, second.section) == ("a 1", "b 2")
    assert split_sections(first) == [first]
    assert read_slice(second).slice_id == "made-b_2"
    assert first.digest() != second.digest()


def test_without_a_key_a_file_is_one_slice(table, write):
    spec = write(table)
    assert split_sections(spec) == [spec]
    assert [one.n_cells for one in read_slices(spec)] == [N]


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (with_z, {}, "have a varying z; expected one section per slice. Set `section_key`"),
        (with_column, {}, "sections named in obs.'section_id'. lie on top of each other.*Set `section_key: section_id`"),
        (with_column, {"section_key": "section_id"}, "found sections .'a 1', 'b 2'.; expected one per slice. Name one with `section`"),
        (with_column, {"section_key": "section_id", "section": "c"}, "expected 'c' among them"),
        (with_column, {"section_key": "slab"}, "expected section_key 'slab' among them"),
        (with_column, {"section_key": "z"}, "coordinates of 2 axes; expected section_key 'z' among them"),
    ],
    ids=["z", "column", "several", "other section", "other column", "no z"],
)
def test_several_sections_are_refused_as_one_slice(table, write, change, settings, message):
    with pytest.raises(BadSlice, match=message) as refusal:
        read_slice(write(change(table), **settings))
    assert refusal.value.code == "MULTI_SECTION"


def test_cells_of_no_section_are_refused(table, write):
    table.obs["slab"] = np.where(HALF, "a", None)
    with pytest.raises(BadSlice, match=f"{N // 2} cells name no section in 'slab'"):
        read_slices(write(table, section_key="slab"))


def test_sections_side_by_side_are_one_frame(table, write):
    table.obs["section_id"] = np.where(table.obsm["spatial"][:, 0] < np.median(table.obsm["spatial"][:, 0]), "left", "right")
    assert read_slice(write(table)).n_cells == N


def test_sections_of_one_name_are_refused(table, write):
    table.obs["slab"] = np.array(["a 1", "a_1"])[HALF]
    with pytest.raises(BadSlice, match="cannot be told apart in names of slices"):
        split_sections(write(table, section_key="slab"))


def test_tiles_of_a_turned_grid_do_not_count_as_overlapping():
    angle, size = np.pi / 4, 10.0
    centres = size * np.stack(np.meshgrid(np.arange(6), np.arange(6)), -1).reshape(-1, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]]) * size / 2
    turned = (centres[:, None] + corners) @ turn.T
    assert 0 < overlap_of_boxes(turned.min(axis=1), turned.max(axis=1)) < 0.3


@pytest.mark.parametrize(("shift", "share"), [(0.0, 1.0), (5.0, 0.5), (10.0, 0.0), (50.0, 0.0)])
def test_the_overlap_is_the_share_of_a_box_in_another(shift, share):
    low = np.array([[0.0, 0.0], [shift, 0.0]])
    assert overlap_of_boxes(low, low + 10) == pytest.approx(share)


def test_boxes_without_an_area_do_not_count():
    low = np.array([[0.0, 0.0], [5.0, 5.0]])
    assert overlap_of_boxes(low, low + np.array([[10, 10], [0, 3]])) == 0
