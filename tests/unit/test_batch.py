"""Collating: real cells first, then virtual cells, then padding, nothing lost."""

from __future__ import annotations

import numpy as np
from synth import random_record

from stofm.batch import collate
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
