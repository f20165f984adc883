"""Sample order: a new permutation every epoch, and chunks that cover every cell once."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pretrain.data import Order, cells_of_chunk, chunk_sub_slices, generator, torch_seed


@pytest.mark.parametrize("n_units", [1, 7, 100])
def test_every_epoch_is_a_permutation(n_units):
    order = Order(n_units, seed=3)
    stream = [order[place] for place in range(4 * n_units)]
    assert [epoch for epoch, _ in stream] == np.repeat(np.arange(4), n_units).tolist()
    epochs = np.array([unit for _, unit in stream]).reshape(4, n_units)
    assert np.sort(epochs, axis=1).tolist() == [list(range(n_units))] * 4


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [[Order(50, seed)[epoch * 50 + place][1] for place in range(50)] for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4


def test_a_place_of_the_stream_can_be_asked_for_at_any_time():
    forwards, backwards = Order(11, 0), Order(11, 0)
    assert [forwards[place] for place in range(99)] == [backwards[place] for place in reversed(range(99))][::-1]


def test_generators_of_other_keys_differ():
    keys = [(0, -1), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1), (0, 1, 0)]
    assert len({generator(seed, *key).integers(2**62) for seed in (7, 8) for key in keys}) == 14
    assert generator(7, 2, 3).integers(2**62) == generator(7, 2, 3).integers(2**62)


def test_seeds_of_torch_differ_from_step_to_step_and_micro_batch_to_micro_batch():
    assert len({torch_seed(seed, step, number) for seed in range(2) for step in range(5) for number in range(5)}) == 50


def view_of(*sizes: tuple[int, int]):
    return SimpleNamespace(places=[SimpleNamespace(n_cells=n_cells, longest=longest) for n_cells, longest in sizes])


@pytest.mark.parametrize("n_tokens", [65_536, 600])
@pytest.mark.parametrize("n_cells", [2, 7, 128])
def test_chunks_cover_every_cell_of_every_record_once(tiny_corpus, n_cells, n_tokens):
    view = tiny_corpus.token_view()
    units = chunk_sub_slices(view, n_cells=n_cells, n_tokens=n_tokens)
    lengths = np.random.default_rng(0).integers(1, 50, max(place.n_cells for place in view.places))
    seen: dict[int, list[int]] = {}
    for record, chunk, n_chunks in units:
        cells = cells_of_chunk(lengths[: view.places[record].n_cells], chunk, n_chunks, generator(0, 0, record))
        assert 2 <= len(cells) <= max(n_cells, 3)
        seen.setdefault(record, []).extend(cells.tolist())
    assert {record: sorted(cells) for record, cells in seen.items()} == {
        number: list(range(place.n_cells)) for number, place in enumerate(view.places)
    }


def test_records_of_one_cell_are_left_out_and_three_cells_stay_together():
    assert chunk_sub_slices(view_of((1, 9), (3, 9), (4, 9)), n_cells=2, n_tokens=1000) == [(1, 0, 1), (2, 0, 2), (2, 1, 2)]


def test_chunks_of_long_cells_have_fewer_of_them():
    assert len(chunk_sub_slices(view_of((100, 99)), n_cells=128, n_tokens=1000)) == 10


def test_cells_of_a_chunk_are_of_like_length_and_equals_are_shuffled():
    lengths = np.repeat([5, 50, 500], 40)
    chunks = [cells_of_chunk(lengths, chunk, 3, generator(0, 0, 0)) for chunk in range(3)]
    assert [set(lengths[cells]) for cells in chunks] == [{5}, {50}, {500}]
    assert chunks[0].tolist() != cells_of_chunk(lengths, 0, 3, generator(0, 1, 0)).tolist()
