"""Work in batches becomes smaller where memory runs out, and all of it is done once."""

from __future__ import annotations

import pytest
import torch

from downstream.memory import halving, in_batches, parse_bytes
from stofm.errors import ConfigError, EnvironmentFault

FAULTS = {
    "numpy": MemoryError("Unable to allocate 3 GiB"),
    "GPU": torch.OutOfMemoryError("CUDA out of memory"),
    "torch on a CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize("room", [1, 2, 3, 8])
def test_batches_shrink_until_they_fit_and_every_item_is_done_once_in_order(fault, room):
    done: list[int] = []

    def work(items: list[int]) -> None:
        if len(items) > room:
            raise fault
        done.extend(items)

    assert in_batches(range(11), work, n_most=8, what="sub-slices") <= room
    assert done == list(range(11))


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_without_room_for_one_item_it_ends_in_one_line(fault):
    def work(items: list[int]) -> None:
        raise fault

    with pytest.raises(EnvironmentFault, match="memory ran out over one of the sub-slices; expected room"):
        in_batches(range(3), work, n_most=2, what="sub-slices")


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_what_is_tried_at_once_is_halved_until_it_fits(fault):
    def work(n: int, room: int) -> int:
        if n > room:
            raise fault
        return n

    assert halving(lambda n: work(n, 300), 2048, what="cells") == 256
    with pytest.raises(EnvironmentFault, match="over one of the cells"):
        halving(lambda n: work(n, 0), 2048, what="cells")


def test_other_errors_go_through():
    def work(items: list[int]) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="multiplied"):
        in_batches(range(3), work, n_most=2, what="sub-slices")


@pytest.mark.parametrize(("text", "n_bytes"), [("8GB", 8e9), ("500 MiB", 500 * 2**20), ("2g", 2e9), ("1000", 1000), ("1.5 TB", 1.5e12)])
def test_sizes_are_read_as_people_write_them(text, n_bytes):
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["much", "-1GB", "0", "8 apples"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="expected a size, for example 8GB"):
        parse_bytes(text)
