"""One builder per corpus: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stofm.errors import ConfigError

LOCK = ".lock"


@contextmanager
def only_builder(folder: Path) -> Iterator[None]:
    """Hold the corpus for this process; `ConfigError` names the host and process that holds it already."""
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ConfigError(
                f"output {folder}: found a build in progress, by {holder}; expected none. Wait for it, or take another `out`."
            ) from None
        file.truncate(0)
        file.write(f"{socket.gethostname()}:{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)  # so that the folder's bytes do not tell who built it
