"""A scheduler's wish that a run ends soon: SIGTERM or SIGUSR1 let the step end, a checkpoint is written, and the exit code says "start me again"."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether a signal came."""

    came: bool = False


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Take note of signals instead of dying of them while the block runs; only the main thread of a program can."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        request.came = True

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
