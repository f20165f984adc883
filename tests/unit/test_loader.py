"""Reading ahead changes nothing but the time: same order, same batches, the same errors in the same place."""

from __future__ import annotations

import threading
import time
from itertools import chain

import numpy as np
import pytest

from corpus.loader import load, read_ahead
from stofm.errors import FormatError


@pytest.mark.parametrize("n_threads", [1, 4])
@pytest.mark.parametrize("n_ahead", [1, 3, 100])
def test_items_come_in_order_whichever_is_ready_first(n_threads, n_ahead):
    def slow_at_first(item: int) -> int:
        time.sleep(0.01 if item % 3 == 0 else 0)
        return item * item

    assert list(read_ahead(slow_at_first, range(20), n_ahead=n_ahead, n_threads=n_threads)) == [item * item for item in range(20)]


def test_an_error_comes_where_its_item_would_have_come():
    def make(item: int) -> int:
        if item == 3:
            raise FormatError("planted")
        return item

    made = read_ahead(make, range(9), n_ahead=5, n_threads=2)
    assert [next(made) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(FormatError, match="planted"):
        next(made)


def test_no_more_is_made_than_was_asked_for():
    made: list[int] = []
    coming = read_ahead(lambda item: made.append(item), iter(range(100)), n_ahead=4)
    next(coming)
    coming.close()
    assert len(made) <= 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


@pytest.fixture
def view(tiny_corpus):
    return tiny_corpus.token_view()


def rows_of(batches) -> list[list[list[int]]]:
    return [[record["rows"].tolist() for record in batch] for batch in batches]


@pytest.mark.parametrize(("n_ahead", "n_threads"), [(1, 1), (4, 1), (2, 3)])
def test_batches_follow_the_ordinals(view, n_ahead, n_threads):
    order = np.random.default_rng(0).permutation(len(view))
    batches = rows_of(load(view, order, batch_size=4, n_ahead=n_ahead, n_threads=n_threads))
    assert [len(batch) for batch in batches] == [4, 4, 1]
    assert list(chain(*batches)) == [view.read(number)["rows"].tolist() for number in order]


@pytest.mark.parametrize("start", range(4))
def test_to_go_on_is_to_start_at_the_next_batch(view, start):
    order = np.random.default_rng(1).permutation(len(view))
    assert rows_of(load(view, order, batch_size=4, start=start)) == rows_of(load(view, order, batch_size=4))[start:]


@pytest.mark.parametrize("n_ranks", [1, 2, 3])
def test_batches_are_the_same_at_any_number_of_processes(view, n_ranks):
    """Each process takes its share of every global batch; side by side they are what one process sees."""
    order, size = np.random.default_rng(2).permutation(len(view))[:6], 6 // n_ranks
    parts = [list(load(view, order.reshape(-1, n_ranks, size)[:, rank].ravel(), batch_size=size)) for rank in range(n_ranks)]
    together = [record["rows"].tolist() for batches in zip(*parts, strict=True) for batch in batches for record in batch]
    assert together == [view.read(number)["rows"].tolist() for number in order]


def test_batches_are_collated_in_the_thread_that_reads(view):
    names = list(load(view, range(4), batch_size=2, collate=lambda records: (len(records), threading.current_thread().name)))
    assert [n for n, _ in names] == [2, 2]
    assert all(name.startswith("read-ahead") for _, name in names)
