"""A training view opened for reading any record at any time: mapped into memory, nothing copied, no damage read as data."""

from __future__ import annotations

import mmap
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from corpus.record import parse_record
from corpus.shards import VIEW_FORMAT, RecordPlace
from stofm.durable import file_sha256, read_json
from stofm.errors import FormatError, located


class View:
    """A view opened for reading.

    Attributes
    ----------
    meta : dict
        The content of `view.json`.
    places : list of RecordPlace
        Where each record lies, by its ordinal.
    """

    def __init__(self, folder: Path, *, view_id: str | None = None) -> None:
        """Open a view; with `view_id`, only that one.

        Raises
        ------
        FormatError
            If the view is of another format, another view, or if its index or a shard is missing, changed or cut off.
        """
        self.folder = folder
        self.meta = read_json(folder / "view.json")
        if self.meta.get("format") != VIEW_FORMAT:
            raise FormatError(f"view {folder}: found format {self.meta.get('format')!r}; expected {VIEW_FORMAT!r}. Build it again.")
        if view_id not in (None, self.view_id):
            raise FormatError(f"view {folder}: found view {self.view_id}; expected {view_id}, which its corpus names. Build the view again.")
        index = folder / "index.parquet"
        if not index.is_file() or file_sha256(index) != self.meta["index"]["sha256"]:
            raise FormatError(f"view {folder}: index.parquet is missing or not the one that view.json names. Build the view again.")
        for shard in self.meta["shards"]:
            path = folder / shard["name"]
            size = path.stat().st_size if path.is_file() else 0
            if size != shard["bytes"]:
                raise FormatError(f"shard {path}: found {size} bytes; expected {shard['bytes']}. Repair it, or build the view again.")
        self._maps: dict[str, mmap.mmap] = {}
        self._is_checked = np.zeros(len(self), bool)

    def __len__(self) -> int:
        return self.meta["n_records"]

    @property
    def view_id(self) -> str:
        return self.meta["view_id"]

    @cached_property
    def places(self) -> list[RecordPlace]:
        import pyarrow.parquet as pq

        names = list(RecordPlace.__dataclass_fields__)
        columns = pq.read_table(self.folder / "index.parquet", columns=names).to_pydict()
        return [RecordPlace(*values) for values in zip(*(columns[name] for name in names), strict=True)]

    def read(self, number: int) -> dict[str, np.ndarray]:
        """Return the arrays of record `number`, read-only views of the mapped file.

        A record is checked against its hash the first time it is read; `FormatError` names shard, key and offset of a
        damaged one.
        """
        place = self.places[number]
        shard = self._mapped(place.shard)
        with located(f"shard {self.folder / place.shard}, record {place.key}, offset {place.offset}"):
            if not self._is_checked[number]:
                with memoryview(shard) as data:
                    found = xxhash.xxh3_64_intdigest(data[place.offset : place.offset + place.nbytes])
                if found != place.xxh3:
                    raise FormatError("bytes differ from those written. Repair the shard, or build the view again.")
                self._is_checked[number] = True
            return parse_record(shard, place.offset, place.nbytes)

    def _mapped(self, shard: str) -> mmap.mmap:
        if shard not in self._maps:
            with (self.folder / shard).open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[shard]
