"""Where a corpus lies: a folder of this machine or a URL (``https://``, ``s3://``, what else fsspec opens), read alike, whole or by ranges."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from stofm.durable import read_json
from stofm.errors import ConfigError, FormatError

N_TRIES, FIRST_WAIT_SECONDS = 4, 0.25  # of a request that the network loses
BLOCK_BYTES = 2**24  # of a file that is read once, from its start to its end
Answer = TypeVar("Answer")


class Place:
    """A file or folder, here or elsewhere.

    Attributes
    ----------
    url : str
        As it was given; a plain path for one of this machine.
    local : Path | None
        The path, if it is on this machine.
    """

    def __init__(self, where: str | Path | Place) -> None:
        self.url: str = where.url if isinstance(where, Place) else str(where)
        is_remote = "://" in self.url and not self.url.startswith("file://")
        self.local = None if is_remote else Path(self.url.removeprefix("file://"))

    def __truediv__(self, name: str) -> Place:
        return Place(self.local / name) if self.local is not None else Place(f"{self.url.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.url

    @cached_property
    def _remote(self) -> tuple[Any, str]:
        """The file system of fsspec and the path in it."""
        import fsspec

        try:
            return fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{self.url}: {error}; expected a path, or a URL such as https:// or s3://. "
                              "Install what reads it: pip install 'stofm[remote]'.") from error  # fmt: skip

    def read(self, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes of the file from `start` to `end`.

        Raises
        ------
        FormatError
            If there is no such file, or not that many bytes come back.
        """
        if self.local is not None:
            if not self.local.is_file():
                raise FormatError(f"{self.url}: no such file; expected one. Check the path.")
            with self.local.open("rb") as file:
                file.seek(start)
                data = file.read(-1 if end is None else end - start)
        else:
            data = self._fetch(start, end)
        if end is not None and len(data) != end - start:
            raise FormatError(f"{self.url}: found {len(data)} bytes where {end - start} were asked for; expected just these. "
                              "The file is cut off, or its server does not answer range requests.")  # fmt: skip
        return data

    def _fetch(self, start: int, end: int | None) -> bytes:
        files, path = self._remote
        try:
            return self._asked(lambda: files.cat_file(path) if end is None and not start else files.cat_file(path, start=start, end=end))
        except FileNotFoundError as error:
            raise FormatError(f"{self.url}: no such file; expected one. Check the address.") from error

    def _asked(self, question: Callable[[], Answer]) -> Answer:
        """Return the answer of a server, asked again where the network loses it; `FileNotFoundError` is an answer, too."""
        import aiohttp

        failure: BaseException | None = None
        for n_try in range(N_TRIES):
            try:
                return question()
            except FileNotFoundError as error:
                # Asked for its size, fsspec's http says that a file is not there whatever went wrong
                failure = error.__cause__ if isinstance(error.__cause__, aiohttp.ClientError | TimeoutError) else None
                if failure is None or getattr(failure, "status", None) == 404:
                    raise
            except (OSError, aiohttp.ClientError, TimeoutError) as error:
                failure = error
            if n_try < N_TRIES - 1:
                time.sleep(FIRST_WAIT_SECONDS * 2**n_try)
        raise FormatError(f"{self.url}: {failure}; expected an answer in {N_TRIES} tries. Check the server and the address.") from failure

    def size(self) -> int | None:
        """Return the number of bytes of the file; None if there is no such file."""
        if self.local is not None:
            return self.local.stat().st_size if self.local.is_file() else None
        files, path = self._remote
        try:
            size = self._asked(lambda: files.size(path))
        except FileNotFoundError:
            return None
        if size is None:
            raise FormatError(f"{self.url}: its server does not say how long it is; expected a Content-Length. Copy it to this machine.")
        return int(size)

    def sha256(self, size: int) -> str:
        """Return the sha256 of the first `size` bytes, as 64 hex digits; no more than a block of them is in memory."""
        digest = hashlib.sha256()
        for start in range(0, size, BLOCK_BYTES):
            digest.update(self.read(start, min(start + BLOCK_BYTES, size)))
        return digest.hexdigest()

    def open(self) -> Any:
        """Open the file for reading from its start to its end."""
        if self.local is not None:
            return self.local.open("rb")
        files, path = self._remote
        return files.open(path, "rb", cache_type="readahead")

    @contextmanager
    def on_this_machine(self) -> Iterator[Path]:
        """Yield a path of this machine: the file itself, or a copy that lives as long as the block."""
        if self.local is not None:
            yield self.local
            return
        with TemporaryDirectory() as folder:
            copy = Path(folder) / self.url.rpartition("/")[2]
            try:
                with self.open() as source, copy.open("wb") as target:
                    shutil.copyfileobj(source, target, 2**22)
            except FileNotFoundError as error:
                raise FormatError(f"{self.url}: no such file; expected one. Check the address.") from error
            yield copy

    def read_json(self) -> dict[str, Any]:
        """Read a JSON object; `FormatError` if the file is missing or damaged."""
        if self.local is not None:
            return read_json(self.local)
        try:
            value = json.loads(self.read())
        except ValueError as error:
            raise FormatError(f"{self.url}: {error}; expected a JSON object that SToFM wrote. Copy the folder again.") from error
        if not isinstance(value, dict):
            raise FormatError(f"{self.url}: found a JSON {type(value).__name__}; expected an object. Copy the folder again.")
        return value
