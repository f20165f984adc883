"""Is a corpus still what was written? Every file against its hash, every damaged record by name; and what is damaged made again from its sources."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpus.derived import open_members, write_derived
from corpus.descriptions import CROISSANT, DATASHEET, croissant, datasheet
from corpus.scales import token_records
from corpus.shards import RecordPlace, pack_shard
from corpus.storage import Place
from corpus.store import TOKENS, Corpus, token_store
from corpus.view import check_record, read_places
from stofm.durable import file_sha256, read_json, remove, write_text
from stofm.errors import DataError, FormatError, located

VIEW_JSON, INDEX = f"views/{TOKENS}/view.json", f"views/{TOKENS}/index.parquet"


@dataclass(frozen=True)
class Damage:
    """One thing of a corpus that is not as it was written; `path` is relative to the corpus."""

    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def verify(corpus: Corpus) -> Iterator[Damage]:
    """Yield what is damaged or missing, reading every byte of the corpus once, wherever it lies.

    Of a damaged shard every damaged record is named, by its key and offset.
    """
    manifest, where = corpus.manifest, corpus.where
    without_id = {name: value for name, value in manifest.items() if name != "corpus_id"}
    if hashlib.sha256(json.dumps(without_id, sort_keys=True).encode()).hexdigest() != corpus.corpus_id:
        yield Damage("manifest.json", f"its content is not that of corpus {corpus.corpus_id[:12]}")
    damaged = [damage for entry in files_of(manifest) if (damage := _damage_of(where, entry)) is not None]
    yield from damaged
    lost = {damage.path for damage in damaged}
    if VIEW_JSON in lost:
        return
    view = (where / VIEW_JSON).read_json()
    for name, text in {CROISSANT: croissant(manifest, view), DATASHEET: datasheet(manifest, view)}.items():
        if (where / name).size() is None or (where / name).read() != text.encode():
            yield Damage(name, "missing or not what the manifest says")
    for shard in view["shards"]:
        entry = {"path": f"views/{TOKENS}/{shard['name']}", **shard}
        if (damage := _damage_of(where, entry)) is not None:
            yield damage
            if INDEX not in lost:  # only an index as it was written tells what a record should be
                yield from _damaged_records(where, entry["path"], _places_in(where, shard["name"]))


def repair(corpus: Corpus) -> tuple[list[Damage], list[Damage]]:
    """Make what is damaged again from what it was made from, to the same bytes; everything else is left as it is.

    Records of a slice follow from its truth, a shard from the records of its slices, the descriptions from the manifest. A
    truth, the vocabulary and the index of a view are made by a build alone.

    Returns
    -------
    what was repaired, what was not
    """
    repaired, left = [], []
    shards = {f"views/{TOKENS}/{shard['name']}": shard for shard in read_json(corpus.folder / VIEW_JSON)["shards"]}
    stores = {store.relative_to(corpus.folder).as_posix(): slice_id for slice_id in corpus.slice_ids for store in [_store_of(corpus, slice_id)[0]]}
    descriptions = {CROISSANT: croissant, DATASHEET: datasheet}
    done: set[str] = set()
    damages = list(verify(corpus))
    has_index = INDEX not in {damage.path for damage in damages}
    for damage in damages:  # truths and stores come before the shards that are packed from them
        if damage.path in done:
            continue
        done.add(damage.path)
        try:
            if damage.path in stores:
                _derive_again(corpus, stores[damage.path])
            elif damage.path in shards and has_index:
                _pack_again(corpus, shards[damage.path]["name"])
            elif damage.path in descriptions:
                view = read_json(corpus.folder / VIEW_JSON)
                write_text(corpus.folder / damage.path, descriptions[damage.path](corpus.manifest, view))
            else:
                left.append(damage)
                continue
            repaired.append(damage)
        except (FormatError, DataError) as error:
            left.append(Damage(damage.path, f"{damage.what}; not repaired: {error}"))
    return repaired, left


def files_of(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the path, bytes and sha256 of every file that a manifest names itself; shards are named by their view."""
    return [*manifest["files"], *(file for entry in manifest["slices"] for file in entry["files"])]


def _damage_of(where: Place, entry: Mapping[str, Any]) -> Damage | None:
    file = where / entry["path"]
    size = file.size()
    if size is None:
        return Damage(entry["path"], "missing")
    if size != entry["bytes"]:
        return Damage(entry["path"], f"found {size} bytes; expected {entry['bytes']}")
    return None if file.sha256(size) == entry["sha256"] else Damage(entry["path"], "bytes differ from those written")


def _damaged_records(where: Place, path: str, places: Iterable[RecordPlace]) -> Iterator[Damage]:
    """The records of a damaged shard that are not as they were written."""
    shard = where / path
    if (size := shard.size()) is None:
        return
    for place in places:
        end = place.offset + place.nbytes
        try:
            check_record(place, shard.read(place.offset, end) if end <= size else b"")
        except FormatError:
            yield Damage(path, f"record {place.key}, offset {place.offset}: bytes differ from those written")


def _places_in(where: Place, shard: str) -> list[RecordPlace]:
    return sorted((place for place in read_places((where / INDEX).read()) if place.shard == shard), key=lambda place: place.offset)


def _store_of(corpus: Corpus, slice_id: str) -> tuple[Path, Mapping[str, str]]:
    entry = next(entry for entry in corpus.manifest["slices"] if entry["slice_id"] == slice_id)
    hashes = {"truth_sha256": entry["truth_sha256"], "vocabulary_sha256": corpus.manifest["vocabulary_sha256"]}
    return token_store(corpus.folder, slice_id, scales=corpus.scales, **hashes)


def _derive_again(corpus: Corpus, slice_id: str) -> None:
    """Make the records of a slice again from its truth."""
    path, made_from = _store_of(corpus, slice_id)
    write_derived(path, token_records(corpus.gene_scale(slice_id), corpus.vocab, corpus.scales.sub_slices), made_from=made_from)
    expected = next(file for file in files_of(corpus.manifest) if corpus.folder / file["path"] == path)
    if file_sha256(path) != expected["sha256"]:
        raise DataError(f"{path.name}: made again, its bytes are others (another version of this program or of zarr?). Build the corpus again.")


def _pack_again(corpus: Corpus, shard: str) -> None:
    """Pack a shard again from the records of its slices; its name proves that it is the same."""
    folder = corpus.folder / "views" / TOKENS
    members = [(place.slice_id, int(place.key.rpartition("-")[2])) for place in _places_in(corpus.where, shard)]
    stores = {slice_id: _store_of(corpus, slice_id) for slice_id, _ in members}
    with located(f"shard {shard}"), open_members(members, stores) as records:
        again = pack_shard(folder, shard.rpartition("-")[0], records)
    if again.name != shard:
        remove(folder / again.name)
        raise DataError(f"shard {shard}: packed again it is {again.name} (another version of this program?). Build the corpus again.")
