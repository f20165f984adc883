"""Virtual cells: how many there are, and that each is the mean of its members."""

from __future__ import annotations

import numpy as np
import pytest
from synth import random_cells
from threadpoolctl import threadpool_limits

from corpus import virtual_cells
from corpus.virtual_cells import VirtualCellConfig, make_virtual_cells

N = 90


@pytest.fixture
def cells() -> tuple[np.ndarray, np.ndarray]:
    coords, embeddings, _ = random_cells(0, N)
    return coords, embeddings.astype(np.float32)


@pytest.mark.parametrize(
    ("settings", "n_expected"),
    [({"cells_each": 10}, 9), ({"cells_each": 10, "n_max": 4}, 4), ({"cells_each": 91}, 1), ({"cells_each": 1, "n_max": 7}, 7), ({"n_max": 0}, 0)],
    ids=["share", "cap", "few cells", "one each, capped", "none"],
)
def test_there_are_as_many_as_the_settings_give(cells, settings, n_expected):
    virtual = make_virtual_cells(*cells, VirtualCellConfig(**settings))
    assert len(virtual.sizes) == len(virtual.coords_um) == len(virtual.embeddings) == n_expected
    assert virtual.embeddings.shape[1] == 256
    assert virtual.of_cell.shape == (N,)


@pytest.mark.parametrize("space_weight", [0.0, 0.5, 1.0])
def test_each_is_the_mean_of_its_members(cells, space_weight):
    coords, embeddings = cells
    virtual = make_virtual_cells(coords, embeddings, VirtualCellConfig(cells_each=10, space_weight=space_weight))
    members = [np.flatnonzero(virtual.of_cell == v) for v in range(len(virtual.sizes))]
    assert virtual.sizes.tolist() == [len(rows) for rows in members]
    assert virtual.sizes.min() > 0
    np.testing.assert_allclose(virtual.coords_um, [coords[rows].mean(axis=0) for rows in members])
    np.testing.assert_allclose(virtual.embeddings, [embeddings[rows].mean(axis=0) for rows in members], atol=1e-6)


def test_with_space_alone_they_are_compact_and_with_expression_alone_they_follow_the_types():
    rng = np.random.default_rng(0)
    coords = np.stack([np.arange(N, dtype=float), np.zeros(N)], axis=1)
    types = rng.integers(0, 2, N)
    embeddings = np.eye(256, dtype=np.float32)[types] + rng.normal(0, 0.01, (N, 256)).astype(np.float32)
    by_space = make_virtual_cells(coords, embeddings, VirtualCellConfig(cells_each=45, space_weight=1.0)).of_cell
    by_expression = make_virtual_cells(coords, embeddings, VirtualCellConfig(cells_each=45, space_weight=0.0)).of_cell
    assert np.count_nonzero(np.diff(by_space)) == 1
    assert len(set(zip(types.tolist(), by_expression.tolist(), strict=True))) == 2


@pytest.mark.parametrize("space_weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("same_place", "same_embedding"), [(True, False), (False, True), (True, True)])
def test_cells_that_coincide_still_give_virtual_cells(cells, same_place, same_embedding, space_weight):
    coords, embeddings = cells
    coords = np.full_like(coords, 5.0) if same_place else coords
    embeddings = np.repeat(embeddings[:1], N, axis=0) if same_embedding else embeddings
    virtual = make_virtual_cells(coords, embeddings, VirtualCellConfig(cells_each=10, space_weight=space_weight))
    assert 1 <= len(virtual.sizes) <= 9
    assert virtual.sizes.sum() == N
    assert np.isfinite(virtual.coords_um).all()
    assert np.isfinite(virtual.embeddings).all()


@pytest.mark.parametrize("n_cells", [1, 2, 3])
def test_a_slice_of_few_cells_has_virtual_cells_too(n_cells):
    coords, embeddings, _ = random_cells(0, n_cells)
    virtual = make_virtual_cells(coords, embeddings.astype(np.float32), VirtualCellConfig(cells_each=50))
    np.testing.assert_allclose(virtual.coords_um, coords.mean(axis=0, keepdims=True))
    assert virtual.sizes.tolist() == [n_cells]


def test_the_same_cells_give_the_same_virtual_cells(cells):
    first, second = (make_virtual_cells(*cells, VirtualCellConfig(cells_each=10)) for _ in range(2))
    assert first.embeddings.tobytes() == second.embeddings.tobytes()
    assert first.of_cell.tolist() == second.of_cell.tolist()


def test_the_number_of_threads_changes_no_bit():
    coords, embeddings, _ = random_cells(0, 3000)
    of_threads = []
    for n_threads in (1, 2):
        with threadpool_limits(n_threads):
            of_threads.append(make_virtual_cells(coords, embeddings.astype(np.float32), VirtualCellConfig()))
    assert of_threads[0].embeddings.tobytes() == of_threads[1].embeddings.tobytes()
    assert of_threads[0].coords_um.tobytes() == of_threads[1].coords_um.tobytes()


def test_clusters_found_on_a_share_of_the_cells_are_joined_by_all(monkeypatch):
    rng = np.random.default_rng(0)
    island = rng.integers(0, 3, 3000)
    coords, embeddings = rng.normal(island[:, None] * 1000.0, 5.0, (3000, 2)), np.eye(256, dtype=np.float32)[island]
    monkeypatch.setattr(virtual_cells, "MOST_FITTED", 100)
    virtual = make_virtual_cells(coords, embeddings, VirtualCellConfig(n_max=3))
    assert len(set(zip(island.tolist(), virtual.of_cell.tolist(), strict=True))) == 3
    assert virtual.sizes.sum() == 3000


@pytest.mark.parametrize("n_fitted", [90, 91, 2**40])
def test_where_the_share_is_all_cells_nothing_changes(cells, n_fitted, monkeypatch):
    usual = make_virtual_cells(*cells, VirtualCellConfig(cells_each=10))
    monkeypatch.setattr(virtual_cells, "MOST_FITTED", n_fitted)
    assert make_virtual_cells(*cells, VirtualCellConfig(cells_each=10)).embeddings.tobytes() == usual.embeddings.tobytes()
