"""Sub-slices: every cell owned once, sizes within bounds, islands apart, the same in every pose, whatever the places."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.spatial.distance import cdist
from synth import turned

from corpus.sub_slices import SubSliceConfig, cut_sub_slices

RNG = np.random.default_rng(0)
PLACES = {
    "scattered": RNG.uniform(0, 1000, (997, 2)),
    "one point": np.zeros((101, 2)),
    "one line": np.stack([np.arange(203.0), 2 * np.arange(203.0)], axis=1),
    "coincident pairs": np.repeat(RNG.uniform(0, 100, (60, 2)), 2, axis=0),
    "square grid": np.stack(np.meshgrid(np.arange(12.0), np.arange(12.0)), -1).reshape(-1, 2),
    "one cell": np.array([[3.0, 4.0]]),
    "two islands": np.concatenate([RNG.uniform(0, 300, (140, 2)), RNG.uniform(0, 300, (230, 2)) + 9000.0]),
    "two cells": np.array([[3.0, 4.0], [5.0, 6.0]]),
}


def keys_of(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 2**64, n, dtype=np.uint64)


def cut(places: np.ndarray, **settings) -> list[list[int]]:
    """Rows that each sub-slice owns."""
    return [one.owned.tolist() for one in cut_sub_slices(places, keys_of(len(places)), SubSliceConfig(**settings))]


@pytest.mark.parametrize("n_cells", [1, 7, 50, 10_000])
@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES.keys())
def test_every_cell_is_owned_by_exactly_one_sub_slice_within_the_bounds(places, n_cells):
    parts = cut(places, n_cells=n_cells)
    fewest, most = SubSliceConfig(n_cells=n_cells).size_bounds
    assert np.sort(np.concatenate(parts)).tolist() == list(range(len(places)))
    assert min(fewest, len(places)) <= min(map(len, parts))
    assert max(map(len, parts)) <= most
    assert all(part == sorted(part) for part in parts)


@pytest.mark.parametrize("n_cells", [7, 50, 90, 10_000])
@pytest.mark.parametrize("places", [PLACES[name] for name in PLACES if name != "two islands"], ids=[name for name in PLACES if name != "two islands"])
def test_sizes_of_one_tissue_differ_by_one_cell_at_most(places, n_cells):
    parts = cut(places, n_cells=n_cells)
    assert len(parts) == max(1, round(len(places) / n_cells))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


SOME_PLACES = st.lists(st.tuples(*[st.integers(-40, 40)] * 2), min_size=1, max_size=60)  # many coincide, and many lie far apart


@given(places=SOME_PLACES, sizes=st.lists(st.integers(1, 25), min_size=3, max_size=3).map(sorted), scale=st.sampled_from([0.1, 1.0, 1e4]))
def test_sizes_keep_to_the_bounds_that_are_set(places, sizes, scale):
    fewest, n_cells, most = sizes
    most = max(most, 2 * fewest - 1)
    parts = cut(np.array(places) * scale, n_cells=n_cells, min_cells=fewest, max_cells=most)
    assert np.sort(np.concatenate(parts)).tolist() == list(range(len(places)))
    assert max(map(len, parts)) <= most
    assert min(map(len, parts)) >= min(fewest, len(places))


@given(
    seed=st.integers(0, 10_000),
    degrees=st.floats(0, 360),
    is_mirrored=st.booleans(),
    shift=st.floats(-1e5, 1e5),
    expresses=st.sampled_from(["alike", "apart"]),
    context=st.sampled_from([{"halo_um": 60.0}, {"context_share": 0.5}, {"context_share": 3.0}]),
    is_shifted=st.booleans(),
)
def test_the_pose_of_the_tissue_changes_neither_cut_nor_context(seed, degrees, is_mirrored, shift, expresses, context, is_shifted):
    rng = np.random.default_rng(seed)
    places = rng.uniform(0, 1, (150, 2)) * rng.uniform(100, 3000, 2)
    keys = keys_of(150) if expresses == "apart" else np.full(150, 7, np.uint64)
    config = SubSliceConfig(n_cells=21, **context)
    moved = turned(places * [-1.0 if is_mirrored else 1.0, 1.0], degrees) + np.array([shift, -0.3 * shift])
    as_sets = [
        {(frozenset(one.owned.tolist()), frozenset(one.rows.tolist())) for one in cut_sub_slices(pose, keys, config, is_shifted=is_shifted)}
        for pose in (places, moved)
    ]
    assert len(as_sets[0]) == 7 + is_shifted
    assert as_sets[0] == as_sets[1]


@pytest.mark.parametrize("degrees", [0.0, 30.0, 90.0])
@pytest.mark.parametrize(
    ("sizes", "box", "offset"),
    [
        ((130, 170), (400, 400), (5000, 0)),
        ((300, 300), (5000, 100), (0, 1500)),
        ((100, 100, 100), (300, 300), (0, 4000)),
        ((20, 400), (300, 300), (9000, 9000)),
    ],
    ids=["far apart", "parallel strips", "three in a row", "a small one"],
)
def test_no_sub_slice_spans_two_islands(sizes, box, offset, degrees):
    rng = np.random.default_rng(0)
    island = np.repeat(np.arange(len(sizes)), sizes)
    places = turned(rng.uniform(0, 1, (len(island), 2)) * box + island[:, None] * offset, degrees)
    parts = cut(places, n_cells=100)
    assert all(len(np.unique(island[part])) == 1 for part in parts)


def test_an_island_below_the_least_size_stays_with_its_neighbours():
    places = np.concatenate([RNG.uniform(0, 300, (300, 2)), RNG.uniform(0, 50, (5, 2)) + 9000.0])
    parts = cut(places, n_cells=100)
    assert sum(300 in part for part in parts) == 1
    assert min(map(len, parts)) >= 100


@pytest.mark.parametrize("halo_um", [10.0, 45.0, 1e6])
@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES.keys())
def test_the_halo_is_every_other_cell_so_near_to_an_owned_one(places, halo_um):
    parts = cut_sub_slices(places, keys_of(len(places)), SubSliceConfig(n_cells=40, halo_um=halo_um))
    distances = [cdist(places, places[one.owned]).min(axis=1) for one in parts]
    near = [np.setdiff1d(np.flatnonzero(distance <= halo_um + 1e-3), one.owned) for one, distance in zip(parts, distances, strict=True)]
    assert [one.rows[one.n_owned :].tolist() for one in parts] == [rows.tolist() for rows in near]


@pytest.mark.parametrize("share", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("places", [PLACES[name] for name in PLACES if name != "two islands"], ids=[name for name in PLACES if name != "two islands"])
def test_a_share_of_context_is_the_nearest_cells_in_whole_rings(places, share):
    for one in cut_sub_slices(places, keys_of(len(places)), SubSliceConfig(n_cells=40, context_share=share)):
        distance = cdist(places, places[one.owned]).min(axis=1)
        context, others = one.rows[one.n_owned :], np.setdiff1d(np.arange(len(places)), one.rows)
        assert len(context) <= share * one.n_owned
        assert len(np.unique(one.rows)) == len(one.rows)
        if len(others) and len(context):
            assert distance[context].max() < distance[others].min()
        if len(others):
            next_ring = distance[others] <= distance[others].min() + 1e-3
            assert len(context) + next_ring.sum() > int(share * one.n_owned)


def test_a_share_of_context_keeps_to_the_island():
    places = PLACES["two islands"]
    parts = cut_sub_slices(places, keys_of(len(places)), SubSliceConfig(n_cells=70, context_share=3.0))
    assert all(len(set((one.rows < 140).tolist())) == 1 for one in parts)
    assert max(len(one.rows) - one.n_owned for one in parts) > 70


def test_a_share_of_context_means_the_same_at_any_distance_of_cells():
    places = PLACES["scattered"]
    near, far = ([one.rows.tolist() for one in cut_sub_slices(places * unit, keys_of(997), SubSliceConfig(n_cells=100))] for unit in (1.0, 10.0))
    assert near == far


def test_borders_of_the_shifted_tiling_lie_elsewhere():
    places = PLACES["scattered"]
    usual, shifted = (cut_sub_slices(places, keys_of(997), SubSliceConfig(n_cells=100), is_shifted=is_shifted) for is_shifted in (False, True))
    assert np.sort(np.concatenate([one.owned for one in shifted])).tolist() == list(range(997))
    assert np.bincount([one.n_owned for one in shifted]).argmax() == pytest.approx(100, abs=1)
    assert not {frozenset(one.owned.tolist()) for one in usual} & {frozenset(one.owned.tolist()) for one in shifted}


@pytest.mark.parametrize("settings", [{"halo_um": 0.0}, {"context_share": 0.0}], ids=str)
def test_without_context_only_owned_cells_are_seen(settings):
    parts = cut_sub_slices(PLACES["scattered"], keys_of(997), SubSliceConfig(n_cells=40, **settings))
    assert all(one.rows.tolist() == one.owned.tolist() for one in parts)


@pytest.mark.parametrize(
    "settings", [{"min_cells": 200}, {"max_cells": 99}, {"min_cells": 90, "max_cells": 110}], ids=["min above", "max below", "too near"]
)
def test_bounds_that_cannot_hold_are_refused(settings):
    with pytest.raises(ValidationError, match="expected min_cells <= n_cells <= max_cells"):
        SubSliceConfig(n_cells=100, **settings)


@pytest.mark.parametrize("keys", [keys_of(997), np.zeros(997, np.uint64)], ids=["different cells", "equal cells"])
def test_the_same_slice_is_cut_the_same_way(keys):
    first, second = (cut_sub_slices(PLACES["scattered"], keys, SubSliceConfig(n_cells=100)) for _ in range(2))
    assert [one.rows.tolist() for one in first] == [one.rows.tolist() for one in second]


def test_the_cut_goes_across_the_longer_axis():
    strip = RNG.uniform(0, 1, (400, 2)) * [1000.0, 300.0]
    first, second = cut(strip, n_cells=200)
    left, right = sorted((strip[first, 0], strip[second, 0]), key=np.mean)
    assert left.max() < right.min() + 20


def test_sub_slices_are_pieces_of_tissue():
    places = PLACES["scattered"]
    parts = cut(places, n_cells=62)  # 16 pieces of a square: 250 um wide
    widths = np.array([np.ptp(places[part], axis=0).max() for part in parts])
    assert widths.max() < 600


def test_three_parts_take_a_third_each():
    parts = cut(PLACES["one line"], n_cells=68)
    assert sorted(len(part) for part in parts) == [67, 68, 68]
    assert all(np.ptp(part) == len(part) - 1 for part in parts)
