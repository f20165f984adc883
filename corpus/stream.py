"""A view read from the start of its shards to their end, for shards that are never copied: through webdataset, every record checked."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from typing import Any

from corpus.record import SUFFIX, parse_record
from corpus.view import View, check_record
from stofm.errors import FormatError, located

Sample = dict[str, Any]  # __key__, __url__ and the arrays of a record


def stream_view(view: View, *, n_buffered: int = 0) -> Any:
    """Return the records of a view as a `webdataset.DataPipeline`, to be split among nodes and workers as webdataset does.

    Shards are mixed samples of the corpus already. Which record comes when depends on the number of readers, and a stop
    in the middle cannot be resumed exactly: where that matters, read by ordinal (`corpus.loader`).

    Parameters
    ----------
    n_buffered : int
        Records among which webdataset shuffles; 0: their order in the shards.
    """
    import webdataset as wds

    urls = [str(view.where / shard["name"]) for shard in view.meta["shards"]]
    stages = [wds.SimpleShardList(urls), wds.split_by_node, wds.split_by_worker, _Records(view)]
    return wds.DataPipeline(*stages, *([wds.shuffle(n_buffered)] if n_buffered else []))


class _Records:
    """The stage between shards and records; a whole shard comes, or an error."""

    def __init__(self, view: View) -> None:
        self.view = view

    def __call__(self, shards: Iterable[Sample]) -> Iterator[Sample]:
        places = {(place.shard, place.key): place for place in self.view.places}
        n_records = {shard["name"]: shard["n_records"] for shard in self.view.meta["shards"]}
        for shard in shards:
            name, n_read = shard["url"].rpartition("/")[2], 0
            with located(f"shard {shard['url']}"), (self.view.where / name).open() as file:
                for key, offset, data in tar_records(file):
                    with located(f"record {key}, offset {offset}"):
                        if (name, key) not in places:
                            raise FormatError("not in the index of its view; expected only records that are. Build the view again.")
                        check_record(places[name, key], data)
                        yield {"__key__": key, "__url__": shard["url"], **parse_record(data)}
                    n_read += 1
                if n_read != n_records[name]:
                    raise FormatError(f"found {n_read} records; expected {n_records[name]}. Repair it, or build the view again.")


def tar_records(file: Any) -> Iterator[tuple[str, int, bytes]]:
    """Yield key, offset and bytes of every member of a shard; nothing but plain records may be in it.

    Raises
    ------
    FormatError
        At a member that is no regular file ``<key>.safetensors`` without a folder (a link, an absolute path, ``..``, a pickle),
        or where the tar is cut off.
    """
    try:
        with tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                if not member.isreg() or suffix != SUFFIX or "/" in key or not key:
                    raise FormatError(f"member {member.name!r}: found {_kind(member)}; expected regular files <key>.{SUFFIX} alone. "
                                      "Do not unpack it; build the view again.")  # fmt: skip
                content = tar.extractfile(member)
                assert content is not None
                yield key, member.offset_data, content.read()
    except tarfile.TarError as error:
        raise FormatError(f"{error}; expected a whole tar file. Repair it, or build the view again.") from error


def _kind(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return f"a link to {member.linkname!r}"
    return "a file of that name" if member.isreg() else "no regular file"
