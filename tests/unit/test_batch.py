"""Collating: real cells first, then virtual cells, then padding, nothing lost."""

from __future__ import annotations

import numpy as np
import pytest
from synth import random_record

from stofm.batch import collate
from stofm.errors import DataError
from stofm.fields import CELL_EMBEDDINGS, COORDS_UM, VIRTUAL_COORDS_UM, VIRTUAL_EMBEDDINGS


def test_cells_virtual_cells_and_padding_are_where_they_belong():
    records = [{**random_record(0, 10), "is_masked": np.arange(10) < 4}, random_record(1, 5, n_virtual=2), random_record(2, 1, n_virtual=0)]
    batch = collate(records)
    assert batch.cell_embeddings.shape == (3, 13, 256)
    assert batch.is_cell.sum(dim=1).tolist() == [10, 5, 1]
    assert batch.is_virtual.sum(dim=1).tolist() == [3, 2, 0]
    assert batch.is_padding.sum(dim=1).tolist() == [0, 6, 12]
    assert batch.is_masked.sum(dim=1).tolist() == [4, 0, 0]
    assert not (batch.is_virtual & batch.is_padding).any()
    assert not (batch.is_masked & ~batch.is_cell).any()
    np.testing.assert_array_equal(batch.coords_um[1, :5], records[1][COORDS_UM])
    np.testing.assert_array_equal(batch.coords_um[1, 5:7], records[1][VIRTUAL_COORDS_UM])
    np.testing.assert_array_equal(batch.cell_embeddings[1, :5], records[1][CELL_EMBEDDINGS].astype(np.float32))
    np.testing.assert_array_equal(batch.cell_embeddings[1, 5:7], records[1][VIRTUAL_EMBEDDINGS])


def broken(record, name, value):
    return {**record, name: np.where(np.arange(record[name].size).reshape(record[name].shape) == 7, value, record[name])}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", [COORDS_UM, CELL_EMBEDDINGS])
def test_numbers_that_are_not_finite_are_refused_by_name(name, value):
    field = "coords_um" if name == COORDS_UM else "cell_embeddings"
    with pytest.raises(DataError, match=f"sub-slice 1 of the batch: {field} of 1 cells .* not finite"):
        collate([random_record(0), broken(random_record(1), name, value)])


def test_a_sub_slice_without_cells_is_refused():
    empty = {name: array[:0] if name in (COORDS_UM, CELL_EMBEDDINGS) else array for name, array in random_record(1).items()}
    with pytest.raises(DataError, match="sub-slice 1 of the batch: found no cell"):
        collate([random_record(0), empty])


def test_no_sub_slice_is_refused():
    with pytest.raises(DataError, match="found no sub-slice"):
        collate([])
