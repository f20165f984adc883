"""Training views: plain tar shards of safetensors records, one sub-slice each, with an index of where every record lies.

The sub-slices of all slices are dealt to shards by a hash of their names, so a shard is a mixed sample of the corpus. Any tar
reader opens them, `webdataset.WebDataset` among them; training reads records by their place in the index (`corpus.view`).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import xxhash

from corpus.record import SUFFIX, Record, pack_record, record_key
from stofm.durable import file_sha256, remove, replacing, sync, write_json

VIEW_FORMAT = "stofm-view/1"
RECORDS_PER_SHARD = 256
FACTS = ("technology", "species", "tissue", "split")  # of a record's slice, columns of the index


@dataclass(frozen=True)
class RecordPlace:
    """Where one record lies, and what it holds."""

    key: str  # <slice_id>-<number of the sub-slice>
    slice_id: str
    shard: str  # file name
    offset: int  # bytes from the start of the shard
    nbytes: int
    xxh3: int  # hash of the record's bytes, unsigned, 64 bits
    n_cells: int
    longest: int  # gene tokens of its longest cell; 0 where the view holds none


@dataclass(frozen=True)
class Shard:
    """A shard that stands, and what it holds."""

    name: str  # <stem>-<first 16 hex digits of the sha256>.tar
    nbytes: int
    sha256: str
    places: tuple[RecordPlace, ...]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Shard:
        """Return what was stored as ``dataclasses.asdict`` of a shard."""
        return cls(**{**value, "places": tuple(RecordPlace(**place) for place in value["places"])})


def deal_records(n_records: Mapping[str, int], *, salt: str) -> list[list[tuple[str, int]]]:
    """Deal the records of all slices to shards, in an order that belongs to their names alone.

    Parameters
    ----------
    n_records : {slice_id: records}
    salt : str
        Another salt, another order.

    Returns
    -------
    list of list of (slice_id, number)
        A list per shard, each full but the last.
    """
    members = [(slice_id, number) for slice_id, n in n_records.items() for number in range(n)]
    members.sort(key=lambda member: hashlib.sha256(f"{salt}|{record_key(*member)}".encode()).digest())
    return [members[start : start + RECORDS_PER_SHARD] for start in range(0, len(members), RECORDS_PER_SHARD)]


def pack_shard(folder: Path, stem: str, records: Iterable[tuple[str, int, Record]]) -> Shard:
    """Write one shard, whole or not at all, under a name that holds the hash of its content.

    Parameters
    ----------
    stem : str
        ``shard-00000``: what the name begins with.
    records : iterable of (slice_id, number, record)
    """
    folder.mkdir(parents=True, exist_ok=True)
    aside, places = folder / f".{stem}.{os.getpid()}.part", []
    try:
        with tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as shard:
            for slice_id, number, (arrays, n_cells, longest) in records:
                data, key = pack_record(arrays), record_key(slice_id, number)
                member = tarfile.TarInfo(f"{key}.{SUFFIX}")  # time, owner and group stay 0: equal records, equal bytes
                member.size, member.mode = len(data), 0o444
                offset = shard.offset + tarfile.BLOCKSIZE  # where the next member's data will start
                shard.addfile(member, io.BytesIO(data))
                places.append((key, slice_id, offset, len(data), xxhash.xxh3_64_intdigest(data), n_cells, longest))
        sha256, nbytes = file_sha256(aside), aside.stat().st_size
        name = f"{stem}-{sha256[:16]}.tar"
        sync(aside)
        os.replace(aside, folder / name)
        sync(folder)
    finally:
        remove(aside)
    return Shard(name, nbytes, sha256, tuple(RecordPlace(key, slice_id, name, *rest) for key, slice_id, *rest in places))


def write_shards(folder: Path, slice_id: str, records: Iterable[Record]) -> list[Shard]:
    """Write the records of one slice, in their order, to as many shards as they fill."""
    numbered = ((slice_id, number, record) for number, record in enumerate(records))
    shards: list[Shard] = []
    while chunk := list(islice(numbered, RECORDS_PER_SHARD)):
        shards.append(pack_shard(folder, f"{slice_id}-{len(shards):05d}", chunk))
    return shards


def write_view(folder: Path, shards: Sequence[Shard], *, made_from: Mapping[str, str], facts: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Write a view's index and, last, the `view.json` that makes it whole; shards of earlier tries are removed.

    Parameters
    ----------
    shards : sequence of Shard
        All of the view; their order is that of the ordinals.
    made_from : {what: hash}
        The corpus, the vocabulary, the encoder: what the records follow from.
    facts : {slice_id: {technology, species, tissue, split}}
        What is known of the slices, for those who choose records by it.

    Returns
    -------
    str
        The view_id, a hash of the content.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    places, of_slice = [place for shard in shards for place in shard.places], facts or {}
    columns: dict[str, Any] = {"ordinal": pa.array(range(len(places)), pa.uint32())}
    for field in fields(RecordPlace):
        kind = {"xxh3": pa.uint64(), "offset": pa.uint64()}.get(field.name, pa.string() if field.type == "str" else pa.uint32())
        columns[field.name] = pa.array([getattr(place, field.name) for place in places], kind)
    for fact in FACTS:
        columns[fact] = pa.array([str(of_slice.get(place.slice_id, {}).get(fact, "")) for place in places], pa.string())
    with replacing(folder / "index.parquet") as aside:
        pq.write_table(pa.table(columns), aside, compression="zstd")
    content = {
        "format": VIEW_FORMAT,
        "made_from": dict(made_from),
        "n_records": len(places),
        "n_cells": sum(place.n_cells for place in places),
        "index": {"bytes": (folder / "index.parquet").stat().st_size, "sha256": file_sha256(folder / "index.parquet")},
        "shards": [{"name": shard.name, "bytes": shard.nbytes, "sha256": shard.sha256, "n_records": len(shard.places)} for shard in shards],
    }
    view_id = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    write_json(folder / "view.json", {**content, "view_id": view_id})
    for stray in {path.name for path in folder.glob("*.tar")} - {shard.name for shard in shards}:
        remove(folder / stray)
    return view_id
