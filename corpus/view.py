"""A training view opened for reading any record at any time: mapped into memory or asked for by range, no damage read as data."""

from __future__ import annotations

import hashlib
import io
import mmap
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from corpus.record import parse_record
from corpus.shards import VIEW_FORMAT, RecordPlace
from corpus.storage import Place
from stofm.errors import FormatError, located

CHECKED_EVERY = 16  # reads of a record


def read_places(index: bytes) -> list[RecordPlace]:
    """Return the places of all records from the bytes of an ``index.parquet``."""
    import pyarrow.parquet as pq

    names = list(RecordPlace.__dataclass_fields__)
    columns = pq.read_table(io.BytesIO(index), columns=names).to_pydict()
    return [RecordPlace(*values) for values in zip(*(columns[name] for name in names), strict=True)]


def check_record(place: RecordPlace, data: bytes | memoryview) -> None:
    """Raise `FormatError` unless these are the bytes that were written as the record at `place`."""
    if xxhash.xxh3_64_intdigest(data) != place.xxh3:
        raise FormatError("bytes differ from those written. Repair the shard, or build the view again.")


class View:
    """A view opened for reading.

    Attributes
    ----------
    where : Place
        Its folder, on this machine or elsewhere.
    meta : dict
        The content of `view.json`.
    """

    def __init__(self, where: str | Path | Place, *, view_id: str | None = None) -> None:
        """Open a view; with `view_id`, only that one.

        Raises
        ------
        FormatError
            If the view is of another format, another view, or if its index or a shard is missing, changed or cut off
            (shards elsewhere are not asked for their sizes: what is wrong with them shows when a record is read).
        """
        self.where = Place(where)
        self.meta = (self.where / "view.json").read_json()
        if self.meta.get("format") != VIEW_FORMAT:
            raise FormatError(f"view {self.where}: found format {self.meta.get('format')!r}; expected {VIEW_FORMAT!r}. Build it again.")
        if view_id not in (None, self.view_id):
            raise FormatError(f"view {self.where}: found view {self.view_id}; expected {view_id}, which its corpus names. Build the view again.")
        self._index = (self.where / "index.parquet").read()
        if hashlib.sha256(self._index).hexdigest() != self.meta["index"]["sha256"]:
            raise FormatError(f"view {self.where}: index.parquet is not the one that view.json names. Build the view again.")
        for shard in self.meta["shards"] if self.where.local is not None else ():
            path = self.where.local / shard["name"]
            size = path.stat().st_size if path.is_file() else 0
            if size != shard["bytes"]:
                raise FormatError(f"shard {path}: found {size} bytes; expected {shard['bytes']}. Repair it, or build the view again.")
        self._maps: dict[str, mmap.mmap] = {}
        self._n_reads = np.zeros(len(self), np.uint32)

    def __len__(self) -> int:
        return self.meta["n_records"]

    @property
    def view_id(self) -> str:
        return self.meta["view_id"]

    @cached_property
    def places(self) -> list[RecordPlace]:
        """Where each record lies, by its ordinal."""
        return read_places(self._index)

    def read(self, number: int) -> dict[str, np.ndarray]:
        """Return the arrays of record `number`, read-only; those of a view on this machine are part of the mapped file.

        A record is checked against its hash the first time it is read and once in 16 times after (one that comes over the network
        every time); `FormatError` names shard, key and offset of a damaged one.
        """
        place = self.places[number]
        with located(f"shard {self.where / place.shard}, record {place.key}, offset {place.offset}"):
            if self.where.local is None:
                data = (self.where / place.shard).read(place.offset, place.offset + place.nbytes)
                check_record(place, data)
                return parse_record(data)
            shard = self._mapped(place.shard)
            n_reads = int(self._n_reads[number])
            if not n_reads or (n_reads + number) % CHECKED_EVERY == 0:
                with memoryview(shard) as whole:
                    check_record(place, whole[place.offset : place.offset + place.nbytes])
            self._n_reads[number] = n_reads + 1
            return parse_record(shard, place.offset, place.nbytes)

    def will_need(self, numbers: Iterable[int]) -> None:
        """Ask the system to have these records in memory soon; a view elsewhere knows no such thing."""
        if self.where.local is None:
            return
        for place in map(self.places.__getitem__, numbers):
            start = place.offset - place.offset % mmap.PAGESIZE
            self._mapped(place.shard).madvise(mmap.MADV_WILLNEED, start, place.offset + place.nbytes - start)

    def _mapped(self, shard: str) -> mmap.mmap:
        if shard not in self._maps:
            assert self.where.local is not None
            try:
                with (self.where.local / shard).open("rb") as file:
                    self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except FileNotFoundError as error:
                raise FormatError(f"shard {self.where / shard}: it was there when the view was opened and is gone. Repair the corpus.") from error
        return self._maps[shard]
