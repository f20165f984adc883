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


_heard: list[StopRequest] = []  # of the blocks that run; inner ones share that of the outermost


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Take note of signals instead of dying of them while the block runs; only the main thread of a program can.

    Blocks may lie in each other: a signal that came in the outer one has come in the inner one too.
    """
    if _heard or threading.current_thread() is not threading.main_thread():
        yield _heard[0] if _heard else StopRequest()
        return
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        request.came = True

    before = {number: signal.signal(number, note) for number in SIGNALS}
    _heard.append(request)
    try:
        yield request
    finally:
        _heard.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
