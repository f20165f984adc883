"""Pairs of cells: the nearest real cells and all virtual cells, each pair once, against a plain search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from synth import random_record, turned

from stofm.batch import SubSliceBatch, collate
from stofm.fields import COORDS_UM
from stofm.geometry import find_pairs


@pytest.fixture(params=["rows", "tree"], autouse=True)
def _way(request, monkeypatch) -> None:
    """Both ways of finding pairs, whatever the number of cells."""
    monkeypatch.setattr("stofm.geometry.MOST_BY_MATRIX", {"rows": 10_000, "tree": 0}[request.param])
    monkeypatch.setattr("stofm.geometry.ROWS_AT_A_TIME", 4)


def plain_pairs(coords: np.ndarray, is_virtual: np.ndarray, n_neighbors: int) -> set[tuple[int, int]]:
    """Unordered pairs of one sub-slice without padding, cell by cell."""
    cells = np.flatnonzero(~is_virtual)
    pairs = {(min(i, j), max(i, j)) for i in np.flatnonzero(is_virtual) for j in range(len(coords)) if i != j}
    for i in cells:
        others = cells[cells != i]
        distances = np.linalg.norm(coords[others].astype(np.float64) - coords[i], axis=1)
        reach = np.sort(distances)[:n_neighbors][-1:].sum() * (1 + 1e-4)
        pairs |= {(min(i, j), max(i, j)) for j in others[distances <= reach]}
    return pairs


def batch_of_places(*places: np.ndarray, n_virtual: int = 0) -> SubSliceBatch:
    records = [{**random_record(0, len(one), n_virtual=n_virtual), COORDS_UM: one.astype(np.float32)} for one in places]
    return collate(records)


def found(batch: SubSliceBatch, n_neighbors: int, b: int = 0) -> set[tuple[int, int]]:
    pairs = find_pairs(batch, n_neighbors=n_neighbors)
    here = pairs.batch == b
    return set(zip(pairs.first[here].tolist(), pairs.second[here].tolist(), strict=True))


@pytest.mark.parametrize("n_virtual", [0, 3])
@pytest.mark.parametrize("n_neighbors", [1, 6, 19, 20, 100])
def test_pairs_are_those_of_a_plain_search(n_neighbors, n_virtual):
    batch = collate([random_record(seed, n_cells, n_virtual=n_virtual) for seed, n_cells in enumerate((20, 33, 1))])
    pairs = find_pairs(batch, n_neighbors=n_neighbors)
    n_each = (~batch.is_padding).sum(dim=1).tolist()
    for b, n in enumerate(n_each):
        assert found(batch, n_neighbors, b) == plain_pairs(batch.coords_um[b, :n].numpy(), batch.is_virtual[b, :n].numpy(), n_neighbors)
    assert len(pairs.first) == len(set(zip(pairs.batch.tolist(), pairs.first.tolist(), pairs.second.tolist(), strict=True)))
    assert (pairs.first < pairs.second).all()


UNEVEN = {
    "crowded in a corner": 10 * np.exp(np.random.default_rng(0).normal(0, 2, (60, 2))),
    "on a line": np.stack([np.zeros(60), np.random.default_rng(1).permutation(60) * 7.0], axis=1),
    "two columns": np.stack([np.arange(60) % 2 * 500.0, np.arange(60) * 8.0], axis=1),
    "two far ends": np.random.default_rng(2).normal(0, 30, (60, 2)) + np.where(np.arange(60) < 3, 1e4, 0.0)[:, None],
}


@pytest.mark.parametrize("n_neighbors", [1, 3, 12])
@pytest.mark.parametrize("places", UNEVEN.values(), ids=UNEVEN.keys())
def test_pairs_are_those_of_a_plain_search_where_cells_lie_unevenly(places, n_neighbors):
    batch = batch_of_places(places)
    assert found(batch, n_neighbors) == plain_pairs(batch.coords_um[0].numpy(), batch.is_virtual[0].numpy(), n_neighbors)


def test_distances_are_those_of_the_places():
    batch = collate([random_record(0), random_record(1, 25)])
    pairs = find_pairs(batch, n_neighbors=4)
    between = batch.coords_um[pairs.batch, pairs.first] - batch.coords_um[pairs.batch, pairs.second]
    torch.testing.assert_close(pairs.distance_um, between.norm(dim=1))


@pytest.mark.parametrize("degrees", [0.0, 33.0])
@pytest.mark.parametrize("spacing", [0.5, 100.0])
def test_ties_on_a_grid_are_neighbors_all_or_none(spacing, degrees):
    grid = turned(np.stack(np.meshgrid(np.arange(5), np.arange(5)), -1).reshape(-1, 2) * spacing, degrees)
    centre_of = {n: {pair for pair in found(batch_of_places(grid), n) if 12 in pair} for n in (1, 2, 4, 5)}
    assert centre_of[1] == centre_of[2] == centre_of[4] == {(7, 12), (11, 12), (12, 13), (12, 17)}
    assert len(centre_of[5]) == 8


def test_coincident_cells_are_pairs_at_distance_zero():
    batch = batch_of_places(np.zeros((4, 2)))
    assert found(batch, 1) == {(i, j) for i in range(4) for j in range(i + 1, 4)}
    assert not find_pairs(batch, n_neighbors=1).distance_um.any()


def test_a_lone_cell_has_no_pair():
    assert found(batch_of_places(np.zeros((1, 2))), 6) == set()
