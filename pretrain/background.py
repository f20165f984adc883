"""Writing while training goes on: one thread, at most one piece of work in flight, and no error that goes unheard."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any


class Background:
    """Do one thing after the other in a thread; an error is raised by the next call, or at the end of the block."""

    def __init__(self) -> None:
        self._pool, self._going = ThreadPoolExecutor(1, thread_name_prefix="background"), None

    _going: Future[Any] | None

    def start(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Wait for the work before, then start this."""
        self.wait()
        self._going = self._pool.submit(work, *args, **kwargs)

    def wait(self) -> None:
        """Wait for what is in flight, and raise its error."""
        going, self._going = self._going, None
        if going is not None:
            going.result()

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                self.wait()
        finally:
            self._pool.shutdown(wait=True)
