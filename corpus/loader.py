"""Reading ahead: threads make what comes next while the last is used, always in order; the state is a number."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from corpus.view import View

Item = TypeVar("Item")
Made = TypeVar("Made")
Record = dict[str, np.ndarray]


def read_ahead(make: Callable[[Item], Made], items: Iterable[Item], *, n_ahead: int = 4, n_threads: int = 1) -> Iterator[Made]:
    """Yield ``make(item)`` for each item, in order, while threads make the next ones.

    `make` has to be a function of its item alone: then nothing depends on the number of threads, and to go on after a stop
    is to start with the next item. An error is raised where its item would have come.
    """
    items = iter(items)
    with ThreadPoolExecutor(n_threads, thread_name_prefix="read-ahead") as pool:
        coming: deque[Future[Made]] = deque(pool.submit(make, item) for item in islice(items, n_ahead))
        try:
            while coming:
                made = coming.popleft().result()
                coming.extend(pool.submit(make, item) for item in islice(items, 1))
                yield made
        finally:
            for future in coming:
                future.cancel()


def load(
    view: View, ordinals: Sequence[int], *, batch_size: int = 1, start: int = 0, collate: Callable[[list[Record]], Any] = list,
    n_ahead: int = 4, n_threads: int = 1,
) -> Iterator[Any]:  # fmt: skip
    """Yield the records of a view in batches, in the order of `ordinals`, from batch number `start` on.

    The number of the next batch is all that a resume needs, at any number of processes: batches that were made but not
    handed out do not count. Where records come over the network, more threads ask for more of them at a time.

    Parameters
    ----------
    ordinals : sequence of int
        A permutation of an epoch, or any other plan.
    collate : list of records -> batch
        Applied in the thread that reads; default: the records themselves.
    """
    n_batches = -(-len(ordinals) // batch_size)

    def of_batch(number: int) -> Sequence[int]:
        return ordinals[number * batch_size : (number + 1) * batch_size]

    def make(number: int) -> Any:
        view.will_need(of_batch(number + n_ahead))
        return collate([view.read(int(ordinal)) for ordinal in of_batch(number)])

    view.will_need(ordinals[start * batch_size : (start + n_ahead) * batch_size])
    return read_ahead(make, range(start, n_batches), n_ahead=n_ahead, n_threads=n_threads)
