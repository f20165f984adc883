"""The `Slice` contract: counts are counts, every cell has a place, and places are micrometres or refused."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from synth import slice_of_counts

from corpus.slice import SliceSpec, nearest_spacing, require_coordinates, to_micrometres
from stofm.errors import DataError

GRID = np.stack(np.meshgrid(np.arange(6.0), np.arange(5.0)), -1).reshape(-1, 2)  # spacing 1


@pytest.mark.parametrize(
    ("unit", "um_per_unit"), [("um", 1.0), ("µm", 1.0), ("μm", 1.0), ("Micron", 1.0), ("micrometers", 1.0), ("mm", 1e3), ("nm (stage)", 1e-3)]
)
def test_a_declared_length_is_converted_whatever_the_spacing(unit, um_per_unit):
    coords, factor = to_micrometres(GRID * 1e4, declared_unit=unit, um_per_unit=None)
    assert factor == um_per_unit
    np.testing.assert_allclose(coords, GRID * 1e4 * um_per_unit)


@pytest.mark.parametrize("declared", [None, "", "a.u."])
@pytest.mark.parametrize("spacing", [1.0, 12.0, 100.0])
def test_coordinates_of_no_declared_unit_pass_if_cells_lie_as_far_apart_as_cells_do(declared, spacing):
    coords, factor = to_micrometres(GRID * spacing, declared_unit=declared, um_per_unit=None)
    assert factor == 1.0
    np.testing.assert_array_equal(coords, GRID * spacing)


@pytest.mark.parametrize("spacing", [0.01, 0.9, 101.0, 5000.0])
def test_coordinates_of_no_declared_unit_are_refused_if_their_spacing_is_not_that_of_cells(spacing):
    with pytest.raises(DataError, match=rf"declare no unit and nearest cells are {spacing:.4g} apart.*Set `um_per_unit`"):
        to_micrometres(GRID * spacing, declared_unit=None, um_per_unit=None)


@pytest.mark.parametrize("unit", ["pixel", "pixels", "px", "Pixel (full resolution)"])
def test_pixels_are_refused_even_where_their_spacing_looks_right(unit):
    with pytest.raises(DataError, match=r"declared as '.*', nearest cells 12 apart; expected micrometres. Set `um_per_unit`"):
        to_micrometres(GRID * 12, declared_unit=unit, um_per_unit=None)


@pytest.mark.parametrize("unit", [None, "pixel", "mm"])
def test_the_setting_goes_before_what_the_file_says(unit):
    coords, factor = to_micrometres(GRID, declared_unit=unit, um_per_unit=0.5)
    assert factor == 0.5
    np.testing.assert_array_equal(coords, GRID * 0.5)


def test_the_spacing_is_that_of_places_and_not_of_cells_that_share_one():
    assert nearest_spacing(np.repeat(GRID * 7, 3, axis=0)) == 7.0
    assert nearest_spacing(np.ones((4, 2))) == 0.0
    assert nearest_spacing(np.vstack([GRID, [[np.nan, 0.0]]])) == 1.0


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        (np.zeros((3, 2)), r"shape \(3, 2\); expected \(4, 2\)"),
        (np.zeros((4, 3)), r"shape \(4, 3\); expected \(4, 2\)"),
        (np.array([[0, 0], [1, np.nan], [np.inf, 2], [3, 3.0]]), "NaN or infinity in 2 cells, first in row 1"),
    ],
    ids=["cells", "axes", "finite"],
)
def test_a_cell_without_a_place_is_refused(coords, message):
    with pytest.raises(DataError, match=message):
        require_coordinates(coords, 4)


@pytest.mark.parametrize(("bad", "found"), [(-1.0, "-1"), (0.5, "0.5"), (np.nan, "nan"), (np.inf, "inf")])
def test_entries_that_are_no_counts_are_refused(bad, found):
    with pytest.raises(DataError, match=rf"counts: found {found} among 1 entries that are no counts.*`counts_layer`"):
        slice_of_counts([[1, 2], [3, bad]], ["a", "b"])


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_an_empty_slice_is_refused(shape):
    with pytest.raises(DataError, match=f"found {shape[0]} cells and {shape[1]} genes; expected at least one of each"):
        slice_of_counts(np.zeros(shape), ["g"] * shape[1])


@pytest.mark.parametrize("slice_id", ["a.b", "a/b", "", "ä b"])
def test_a_name_that_would_break_files_or_keys_is_refused(slice_id):
    with pytest.raises(ValidationError, match="slice_id"):
        SliceSpec(path="x.h5ad", slice_id=slice_id)
