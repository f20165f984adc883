"""Sub-slices: every cell once, sizes as equal as they can be, neighbours together, whatever the places."""

from __future__ import annotations

import numpy as np
import pytest

from corpus.sub_slices import cut_sub_slices

RNG = np.random.default_rng(0)
PLACES = {
    "scattered": RNG.uniform(0, 1000, (997, 2)),
    "one point": np.zeros((101, 2)),
    "one line": np.stack([np.arange(203.0), 2 * np.arange(203.0)], axis=1),
    "coincident pairs": np.repeat(RNG.uniform(0, 100, (60, 2)), 2, axis=0),
    "square grid": np.stack(np.meshgrid(np.arange(12.0), np.arange(12.0)), -1).reshape(-1, 2),
    "one cell": np.array([[3.0, 4.0]]),
    "two cells": np.array([[3.0, 4.0], [5.0, 6.0]]),
}


def keys_of(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 2**64, n, dtype=np.uint64)


@pytest.mark.parametrize("n_cells", [1, 7, 50, 10_000])
@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES.keys())
def test_every_cell_is_in_exactly_one_sub_slice_of_nearly_equal_size(places, n_cells):
    parts = cut_sub_slices(places, keys_of(len(places)), n_cells=n_cells)
    assert len(parts) == max(1, round(len(places) / n_cells))
    assert np.sort(np.concatenate(parts)).tolist() == list(range(len(places)))
    sizes = [len(part) for part in parts]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= np.ceil(np.log2(len(parts)))
    assert all((np.diff(part) > 0).all() for part in parts)


@pytest.mark.parametrize("keys", [keys_of(997), np.zeros(997, np.uint64)], ids=["different cells", "equal cells"])
def test_the_same_slice_is_cut_the_same_way(keys):
    first, second = (cut_sub_slices(PLACES["scattered"], keys, n_cells=100) for _ in range(2))
    assert [part.tolist() for part in first] == [part.tolist() for part in second]


def test_the_cut_goes_across_the_longer_axis():
    strip = RNG.uniform(0, 1, (400, 2)) * [1000.0, 300.0]
    first, second = cut_sub_slices(strip, keys_of(400), n_cells=200)
    left, right = sorted((strip[first, 0], strip[second, 0]), key=np.mean)
    assert left.max() < right.min() + 20


def test_sub_slices_are_pieces_of_tissue():
    places = PLACES["scattered"]
    parts = cut_sub_slices(places, keys_of(len(places)), n_cells=62)  # 16 pieces of a square: 250 um wide
    widths = np.array([np.ptp(places[part], axis=0).max() for part in parts])
    assert widths.max() < 600


def test_three_parts_take_a_third_each():
    parts = cut_sub_slices(PLACES["one line"], keys_of(203), n_cells=68)
    assert sorted(len(part) for part in parts) == [67, 68, 68]
    assert all(np.ptp(part) == len(part) - 1 for part in parts)
