"""Training views: plain tar shards of safetensors records, one sub-slice each, with an index of where every record lies.

Any tar reader opens them, `webdataset.WebDataset` among them; training reads records by their place in the index.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import xxhash
from safetensors import SafetensorError
from safetensors.numpy import load, save

from stofm.durable import file_sha256, read_json, replacing, write_json
from stofm.errors import FormatError

VIEW_FORMAT = "stofm-view/1"
RECORDS_PER_SHARD = 256
SUFFIX = "safetensors"

Arrays = Mapping[str, np.ndarray]
Record = tuple[Arrays, int, int]  # arrays, n_cells, gene tokens of the longest cell


@dataclass(frozen=True)
class RecordPlace:
    """Where one record lies, and what it holds."""

    key: str  # <slice_id>-<number of the sub-slice>; no dot, which ends a key in webdataset
    slice_id: str
    shard: str  # file name
    offset: int  # bytes from the start of the shard
    size: int  # bytes
    xxh3: str  # 16 hex digits of the record's bytes
    n_cells: int
    longest: int  # gene tokens of its longest cell; 0 where the view holds none


def write_shards(folder: Path, slice_id: str, records: Iterable[Record]) -> list[RecordPlace]:
    """Write the records of one slice to as many shards as they fill, each whole or not at all.

    Parameters
    ----------
    records : iterable of (arrays, n_cells, longest)
        In the order of the slice's sub-slices.
    """
    places: list[RecordPlace] = []
    for n_shard, chunk in enumerate(_chunks(records, RECORDS_PER_SHARD)):
        name = f"{slice_id}-{n_shard:05d}.tar"
        with replacing(folder / name) as aside, tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as shard:
            for arrays, n_cells, longest in chunk:
                key = f"{slice_id}-{len(places):05d}"
                data = save(dict(sorted(arrays.items())))
                member = tarfile.TarInfo(f"{key}.{SUFFIX}")  # time, owner and group stay 0: equal records, equal bytes
                member.size = len(data)
                offset = shard.offset + tarfile.BLOCKSIZE  # where the next member's data will start
                shard.addfile(member, io.BytesIO(data))
                places.append(RecordPlace(key, slice_id, name, offset, len(data), xxhash.xxh3_64_hexdigest(data), n_cells, longest))
    return places


def write_view(folder: Path, places: Sequence[RecordPlace], *, meta: Mapping[str, object]) -> None:
    """Write a view's index and, last, the `view.json` that makes it whole."""
    import pandas as pd

    with replacing(folder / "index.parquet") as aside:
        pd.DataFrame([asdict(place) for place in places]).to_parquet(aside)
    shards = {name: file_sha256(folder / name) for name in sorted({place.shard for place in places})}
    write_json(folder / "view.json", {"format": VIEW_FORMAT, "index": file_sha256(folder / "index.parquet"), "shards": shards, **meta})


class View:
    """A view opened for reading any record at any time; records are checked against their hash as they are read."""

    def __init__(self, folder: Path) -> None:
        import pandas as pd

        self.folder = folder
        self.meta = read_json(folder / "view.json")
        if self.meta.get("format") != VIEW_FORMAT:
            raise FormatError(f"view {folder}: found format {self.meta.get('format')!r}; expected {VIEW_FORMAT!r}. Build it again.")
        index = folder / "index.parquet"
        if not index.is_file() or file_sha256(index) != self.meta["index"]:
            raise FormatError(f"view {folder}: index.parquet is missing or not the one that view.json names. Build the view again.")
        self.places = [RecordPlace(**row) for row in pd.read_parquet(index).to_dict("records")]
        ends: dict[str, int] = {}
        for place in self.places:
            ends[place.shard] = max(ends.get(place.shard, 0), place.offset + place.size)
        for name, end in ends.items():
            size = (folder / name).stat().st_size if (folder / name).is_file() else 0
            if size < end:
                raise FormatError(f"shard {folder / name}: found {size} bytes; expected at least {end}. Build the view again.")
        self._maps: dict[str, np.memmap] = {}

    def __len__(self) -> int:
        return len(self.places)

    def read(self, number: int) -> dict[str, np.ndarray]:
        """Return the arrays of record `number`; `FormatError` names shard, key and offset of a damaged one."""
        place = self.places[number]
        if place.shard not in self._maps:
            self._maps[place.shard] = np.memmap(self.folder / place.shard, np.uint8, "r")
        data = self._maps[place.shard][place.offset : place.offset + place.size].tobytes()
        where = f"shard {self.folder / place.shard}, record {place.key}, offset {place.offset}"
        if xxhash.xxh3_64_hexdigest(data) != place.xxh3:
            raise FormatError(f"{where}: bytes differ from those written. Build the view again.")
        try:
            return load(data)
        except SafetensorError as error:
            raise FormatError(f"{where}: {error}; expected a safetensors record. Build the view again.") from error


def _chunks(items: Iterable[Record], size: int) -> Iterator[list[Record]]:
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
