"""Masking: how much is hidden, what never is, and virtual cells that keep nothing of what was hidden or moved."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from synth import random_cells, random_record, record_of

from pretrain.config import SE2StageConfig
from pretrain.masking import mask_gene_tokens, mask_sub_slice
from stofm.fields import CELL_EMBEDDINGS, COORDS_UM, IS_CONTEXT, MASK_TOKEN, PAD_TOKEN, VIRTUAL_COORDS_UM, VIRTUAL_EMBEDDINGS
from stofm.gene_tokens import LEVEL_SHIFT

CLS = 99
CONFIG = SE2StageConfig(mask_rate=0.2, keep_rate=0.1, move_rate=0.3)


def masked(record, seed: int = 0, config: SE2StageConfig = CONFIG, n_neighbors: int = 6):
    return mask_sub_slice(record, config, n_neighbors=n_neighbors, rng=np.random.default_rng(seed))


def moved_cells(record, one) -> np.ndarray:
    return (one.seen[COORDS_UM] != record[COORDS_UM]).any(axis=1)


@pytest.mark.parametrize("rate", [0.15, 0.6])
def test_the_share_of_gene_tokens_asked_for_is_hidden_and_special_tokens_never_are(rate):
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, CLS, (200, 100))
    tokens[:, 0], tokens[100:, 60:] = CLS, PAD_TOKEN
    seen, is_hidden = mask_gene_tokens(tokens, cls_token=CLS, rate=rate, rng=rng)
    is_gene = (tokens != CLS) & (tokens != PAD_TOKEN)
    assert is_hidden[is_gene].mean() == pytest.approx(rate, abs=0.02)
    assert not is_hidden[~is_gene].any()
    np.testing.assert_array_equal(seen, np.where(is_hidden, MASK_TOKEN, tokens))


def test_the_level_of_a_hidden_gene_is_hidden_too():
    tokens = np.arange(2, 90)[None] | (np.arange(2, 90)[None] << LEVEL_SHIFT)
    seen, is_hidden = mask_gene_tokens(tokens, cls_token=CLS, rate=0.5, rng=np.random.default_rng(0))
    assert set((seen[is_hidden] >> LEVEL_SHIFT).tolist()) == {0}
    np.testing.assert_array_equal(seen[~is_hidden], tokens[~is_hidden])


@pytest.mark.parametrize(
    ("n_cells", "n_masked", "n_predicted", "n_moved"),
    [(100, 20, 30, 30), (41, 8, 12, 12), (4, 1, 1, 1)],
    ids=["many", "rounded down", "at least one"],
)
def test_the_share_of_cells_asked_for_is_hidden_predicted_and_moved(n_cells, n_masked, n_predicted, n_moved):
    record = random_record(0, n_cells)
    one = masked(record)
    assert one.seen["is_masked"].sum() == n_masked
    assert one.is_predicted.sum() == n_predicted
    assert one.is_predicted[one.seen["is_masked"]].all()
    assert moved_cells(record, one).sum() == n_moved


@pytest.mark.parametrize("seed", range(3))
def test_context_is_neither_hidden_nor_predicted_nor_moved(seed):
    record = random_record(0, 60) | {IS_CONTEXT: np.arange(60) >= 40}
    one = masked(record, seed)
    touched = one.seen["is_masked"] | one.is_predicted | moved_cells(record, one)
    assert not touched[40:].any()
    assert (one.seen["is_masked"].sum(), one.is_predicted.sum(), moved_cells(record, one).sum()) == (8, 12, 12)
    assert (one.pairs[:, 0] < 40).all()


def test_hidden_embeddings_are_gone_and_all_others_as_they_were():
    record = random_record(1)
    one = masked(record)
    hidden = one.seen["is_masked"]
    assert not one.seen[CELL_EMBEDDINGS][hidden].any()
    np.testing.assert_array_equal(one.seen[CELL_EMBEDDINGS][~hidden], record[CELL_EMBEDDINGS][~hidden].astype(np.float32))
    np.testing.assert_array_equal(one.embeddings, record[CELL_EMBEDDINGS].astype(np.float32))


@pytest.mark.parametrize("seed", range(4))
def test_virtual_cells_are_means_without_the_hidden_and_without_the_moved(seed):
    coords, embeddings, of_cell = random_cells(seed, 70)
    record = record_of(coords, embeddings, of_cell, n_cells=50)
    one = masked(record, seed)
    is_hidden, is_moved = (np.concatenate([flags, np.zeros(20, bool)]) for flags in (one.seen["is_masked"], moved_cells(record, one)))
    visible = [np.flatnonzero((of_cell == v) & ~is_hidden) for v in range(3)]
    unmoved = [np.flatnonzero((of_cell == v) & ~is_moved) for v in range(3)]
    np.testing.assert_allclose(one.seen[VIRTUAL_EMBEDDINGS], [embeddings[rows].astype(np.float64).mean(axis=0) for rows in visible], atol=1e-5)
    np.testing.assert_allclose(one.seen[VIRTUAL_COORDS_UM], [coords[rows].mean(axis=0) for rows in unmoved], atol=1e-3)


def test_virtual_cells_left_without_a_member_are_dropped():
    coords, embeddings, _ = random_cells(0, 30)
    record = record_of(coords, embeddings, np.arange(30), n_virtual=30)
    one = masked(record)
    n_left = 30 - int((one.seen["is_masked"] | moved_cells(record, one)).sum())
    assert len(one.seen[VIRTUAL_EMBEDDINGS]) == len(one.seen[VIRTUAL_COORDS_UM]) == n_left
    assert np.isfinite(one.seen[VIRTUAL_EMBEDDINGS]).all()


def test_a_slice_without_virtual_cells_is_masked_too():
    one = masked(random_record(0, n_virtual=0))
    assert one.seen[VIRTUAL_EMBEDDINGS].shape == (0, 256)


@pytest.mark.parametrize("n_neighbors", [1, 6, 100])
def test_the_distances_to_recover_are_those_of_moved_cells_to_their_true_neighbors(n_neighbors):
    record = random_record(2)
    one = masked(record, n_neighbors=n_neighbors)
    distances = cdist(record[COORDS_UM], record[COORDS_UM])
    np.fill_diagonal(distances, np.inf)
    k = min(n_neighbors, 39)
    expected = {(i, j) for i in np.flatnonzero(moved_cells(record, one)) for j in np.argsort(distances[i])[:k]}
    assert set(map(tuple, one.pairs.tolist())) == expected
    assert len(one.pairs) == len(expected)
    spacing = np.median(np.sort(distances, axis=1)[:, : min(k, 6)].mean(axis=1))
    np.testing.assert_allclose(one.pair_distances, distances[tuple(one.pairs.T)] / spacing, rtol=1e-4)


def test_moves_are_as_wide_as_asked_in_units_of_the_local_spacing():
    record = random_record(0, 900)
    steps = [masked(record, seed).seen[COORDS_UM] - record[COORDS_UM] for seed in range(4)]
    widths = np.concatenate([step[(step != 0).any(axis=1)] for step in steps])
    assert widths.std() == pytest.approx(5.0 * 11.0, rel=0.15)  # six neighbours on a jittered grid of 10 um lie 11 to 12 um away


@pytest.mark.parametrize("n_cells", [1, 2, 3])
def test_a_sub_slice_of_few_cells_is_masked_too(n_cells):
    one = masked(random_record(0, n_cells))
    assert one.seen["is_masked"].sum() == 1
    assert one.pairs.shape == (n_cells - 1, 2)


def test_cells_in_one_point_are_not_moved():
    coords, embeddings, of_cell = random_cells(0, 30)
    record = record_of(np.zeros_like(coords), embeddings, of_cell)
    one = masked(record)
    assert not moved_cells(record, one).any()
    assert len(one.pairs) == 0


def test_coincident_cells_are_neighbors_of_each_other_and_not_of_themselves():
    coords, embeddings, of_cell = random_cells(0, 40)
    one = masked(record_of(np.repeat(coords[:10], 4, axis=0), embeddings, of_cell), n_neighbors=2)
    assert (one.pairs[:, 0] != one.pairs[:, 1]).all()
    assert (one.pair_distances == 0).all()


def test_the_same_generator_masks_the_same():
    record = random_record(0)
    first, second, other = masked(record, 5), masked(record, 5), masked(record, 6)
    np.testing.assert_array_equal(first.seen[COORDS_UM], second.seen[COORDS_UM])
    assert first.pairs.tolist() == second.pairs.tolist()
    assert (first.seen["is_masked"] != other.seen["is_masked"]).any()
