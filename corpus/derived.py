"""What is computed from a slice, stored once: the records of its sub-slices as arrays, in a zipped zarr store per slice, step and settings.

A store is named by what it was made from and never changed: other settings make another file. Shards are packed from it,
and packed again when one of them is damaged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from corpus.record import Record
from corpus.zarr_zip import Store, new_group, open_store, write_parts
from stofm.errors import FormatError

DERIVED_FORMAT = "stofm-derived/1"
N_CELLS, LONGEST = "n_cells", "longest"  # of each record
FIELDS, OFFSETS = "fields", "offsets"
CHUNK = 2**18  # elements; about the gene tokens of one sub-slice, the unit that is read

MadeFrom = Mapping[str, str]  # what determines the content: hashes of the truth, the vocabulary, the settings


def derived_path(folder: Path, slice_id: str, step: str, made_from: MadeFrom) -> Path:
    """Return where a corpus keeps what a step made of a slice from exactly this."""
    digest = hashlib.sha256(json.dumps(dict(made_from), sort_keys=True).encode()).hexdigest()
    return folder / "slices" / slice_id / f"{step}-{digest[:12]}.zarr.zip"


def write_derived(path: Path, records: Iterable[Record], *, made_from: MadeFrom) -> int:
    """Write the records of one slice, whole or not at all; returns how many there are.

    Every field is one array, records one after the other along the first axis, with the offsets where each begins. A
    field has the same dtype and the same shape but for its length in all records.
    """
    kept = list(records)
    with new_group(path) as group:
        group.attrs.update({"format": DERIVED_FORMAT, "made_from": dict(sorted(made_from.items()))})
        group.create_array(N_CELLS, data=np.array([n_cells for _, n_cells, _ in kept], np.uint32))
        group.create_array(LONGEST, data=np.array([longest for *_, longest in kept], np.uint32))
        fields, offsets = group.create_group(FIELDS), group.create_group(OFFSETS)
        for name, first in sorted(kept[0][0].items()) if kept else ():
            parts = [arrays[name] for arrays, *_ in kept]
            ends = np.cumsum([0, *map(len, parts)])
            offsets.create_array(name, data=ends)
            write_parts(fields, name, first.dtype, (int(ends[-1]), *first.shape[1:]), parts, chunk=CHUNK)
    return len(kept)


class DerivedRecords:
    """The records of one slice, opened for reading any of them; only the chunks it lies in are read."""

    def __init__(self, store: Store) -> None:
        self._store, self.n_cells, self.longest = store, store.read(N_CELLS), store.read(LONGEST)
        self._offsets = {name: store.read(f"{OFFSETS}/{name}") for name in store.children(OFFSETS)}

    def __len__(self) -> int:
        return len(self.n_cells)

    def __getitem__(self, number: int) -> Record:
        arrays = {name: self._store.read(f"{FIELDS}/{name}", *ends[number : number + 2]) for name, ends in self._offsets.items()}
        return arrays, int(self.n_cells[number]), int(self.longest[number])


@contextmanager
def open_derived(path: Path, *, made_from: MadeFrom) -> Iterator[DerivedRecords]:
    """Open a store; `FormatError` if it is missing, damaged, or was not made from exactly this."""
    with open_store(path) as store:
        found = store.attributes()
        if found.get("format") != DERIVED_FORMAT:
            raise FormatError(f"{path}: found format {found.get('format')!r}; expected {DERIVED_FORMAT!r}. Build the corpus again.")
        if found.get("made_from") != dict(made_from):
            raise FormatError(
                f"{path}: found records made from {found.get('made_from')}; expected {dict(made_from)}. Remove the file and build the corpus again."
            )
        yield DerivedRecords(store)


@contextmanager
def open_members(members: Sequence[tuple[str, int]], stores: Mapping[str, tuple[Path, MadeFrom]]) -> Iterator[Iterator[tuple[str, int, Record]]]:
    """Open the stores of the slices that `members` names and yield its records, for `corpus.shards.pack_shard`.

    Parameters
    ----------
    members : sequence of (slice_id, number)
        A shard's share from `corpus.shards.deal_records`.
    stores : {slice_id: (path, made_from)}
    """
    with ExitStack() as stack:
        opened = {
            slice_id: stack.enter_context(open_derived(stores[slice_id][0], made_from=stores[slice_id][1])) for slice_id in {s for s, _ in members}
        }
        yield ((slice_id, number, opened[slice_id][number]) for slice_id, number in members)
