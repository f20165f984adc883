"""Cells as a page carries them: an order that is a kd-tree, places and numbers rounded no more than stated, classes kept."""

from __future__ import annotations

import base64
import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tools.reports.points import class_column, kd_order, number_column, pack, quantise

PLACES = arrays(np.uint16, st.tuples(st.integers(1, 300), st.just(2)))


def is_kd_tree(values: np.ndarray, node_size: int, axis: int = 0) -> bool:
    """Whether the middle of (n, 2) ordered points divides those before it from those after it, and so on down to leaves."""
    if len(values) - 1 <= node_size:
        return True
    middle = (len(values) - 1) >> 1
    before, after = values[:middle], values[middle + 1 :]
    divides = (before[:, axis] <= values[middle, axis]).all() and (after[:, axis] >= values[middle, axis]).all()
    return bool(divides) and is_kd_tree(before, node_size, 1 - axis) and is_kd_tree(after, node_size, 1 - axis)


@given(PLACES, st.integers(1, 20))
def test_points_are_ordered_as_a_kd_tree_and_none_is_lost(places, node_size):
    order = kd_order(places[:, 0], places[:, 1], node_size=node_size)
    assert sorted(order.tolist()) == list(range(len(places)))
    assert is_kd_tree(places[order], node_size)


@given(arrays(np.float64, st.tuples(st.integers(1, 50), st.just(2)), elements=st.floats(-1e5, 1e5)))
def test_places_come_back_within_half_a_step(coords_um):
    places, step = quantise(coords_um)
    assert np.abs(places * step + coords_um.min(axis=0) - coords_um).max() <= step * 0.501 + 1e-6


@given(arrays(np.int64, st.integers(1, 100), elements=st.integers(0, 200)))
def test_small_whole_numbers_are_exact(values):
    column = number_column("n", "n", "", values)
    np.testing.assert_array_equal(column.low + (column.codes - 1.0) * column.step, values)
    assert column.is_exact


def test_numbers_are_rounded_to_a_level_and_missing_ones_are_code_0():
    values = np.append(np.random.default_rng(0).uniform(0, 1, 5000), [np.nan, np.inf])
    column = number_column("p", "p", "", values)
    assert column.codes[-2:].tolist() == [0, 0]
    back = column.low + (column.codes[:-2] - 1.0) * column.step
    assert np.abs(back - values[:-2]).max() <= column.step * 0.501
    assert not column.is_clipped


def test_a_long_tail_does_not_take_the_colours_of_the_rest():
    values = np.append(np.random.default_rng(0).uniform(0, 10, 9999), 1e6)
    column = number_column("depth", "depth", "", values)
    assert column.is_clipped
    assert column.low + (column.n_levels - 1) * column.step < 11
    assert column.codes[-1] == column.n_levels


def test_one_value_only_is_one_level():
    column = number_column("x", "x", "", np.full(3, 2.5))
    assert column.codes.tolist() == [1, 1, 1]
    assert np.isfinite(column.step)


def test_classes_keep_their_names_and_empty_ones_are_missing():
    column = class_column("r", "r", "", np.array(["b", "", "a", "b"]))
    assert column.levels == ["a", "b"]
    assert column.codes.tolist() == [2, 0, 1, 2]
    assert column.meta("block-1")["counts"] == [1, 1, 2]


def test_more_classes_than_a_byte_holds_take_two():
    names = np.array([f"c{number:03d}" for number in range(300)])
    column = class_column("c", "c", "", names)
    assert column.codes.dtype == np.uint16
    assert column.codes.tolist() == list(range(1, 301))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2"])
def test_packed_numbers_are_little_endian_and_the_same_every_time(dtype):
    values = np.arange(200).astype(dtype)
    text = pack(values)
    back = np.frombuffer(gzip.decompress(base64.b64decode(text)), np.dtype(dtype).newbyteorder("<"))
    np.testing.assert_array_equal(back, values)
    assert pack(values) == text
