"""Work in the background is done in order, one piece at a time, and its errors are heard; signals are noted instead of died of."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from pretrain.background import Background
from pretrain.stopping import SIGNALS, stop_requests


def test_work_is_done_in_order_and_never_two_at_once():
    done, going, most = [], [], []

    def work(number: int) -> None:
        going.append(number)
        most.append(len(going))
        time.sleep(0.01)
        going.remove(number)
        done.append(number)

    with Background() as background:
        for number in range(5):
            background.start(work, number)
    assert (done, max(most)) == (list(range(5)), 1)


def fail() -> None:
    raise OSError("the disk is full")


def test_an_error_is_raised_by_the_next_piece_of_work():
    with Background() as background:
        background.start(fail)
        with pytest.raises(OSError, match="the disk is full"):
            background.start(lambda: pytest.fail("work after an error"))


def test_an_error_is_raised_at_the_end_of_the_block():
    with pytest.raises(OSError, match="the disk is full"), Background() as background:
        background.start(fail)


def test_an_error_of_the_block_itself_goes_first_and_what_was_begun_is_finished():
    done = threading.Event()

    def block() -> None:
        with Background() as background:
            background.start(lambda: (time.sleep(0.05), done.set(), fail()))
            raise ValueError("of the block")

    with pytest.raises(ValueError, match="of the block"):
        block()
    assert done.is_set()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_what_handled_it_before_is_put_back(number):
    before = signal.getsignal(number)
    with stop_requests() as outer:
        assert not outer.came
        os.kill(os.getpid(), number)
        with stop_requests() as inner:
            assert inner.came
        assert outer.came
    assert signal.getsignal(number) == before
    with stop_requests() as next_one:
        assert not next_one.came
