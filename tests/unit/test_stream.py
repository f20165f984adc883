"""Shards read from start to end: every record checked, and nothing but plain records let through."""

from __future__ import annotations

import io
import pickle
import tarfile

import numpy as np
import pytest

from corpus.record import pack_record
from corpus.shards import write_shards, write_view
from corpus.stream import stream_view, tar_records
from corpus.view import View
from stofm.errors import FormatError

RECORD = pack_record({"coords": np.arange(6.0).reshape(3, 2)})


def member(name: str, data: bytes = RECORD, **attributes) -> bytes:
    """A tar with one member."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for attribute, value in attributes.items():
            setattr(info, attribute, value)
        tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


REFUSED = {
    "symlink": (member("a-00000.safetensors", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a link to '/etc/passwd'"),
    "hard link": (member("a-00000.safetensors", b"", type=tarfile.LNKTYPE, linkname="b"), "a link to 'b'"),
    "absolute": (member("/etc/a-00000.safetensors"), "a file of that name"),
    "parent": (member("../a-00000.safetensors"), "a file of that name"),
    "folder inside": (member("x/a-00000.safetensors"), "a file of that name"),
    "folder": (member("a-00000.safetensors", b"", type=tarfile.DIRTYPE), "no regular file"),
    "device": (member("a-00000.safetensors", b"", type=tarfile.CHRTYPE), "no regular file"),
    "pickle": (member("a-00000.pkl", pickle.dumps([1])), "a file of that name"),
    "two suffixes": (member("a.00000.safetensors"), "a file of that name"),
    "no key": (member(".safetensors"), "a file of that name"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_member_that_is_no_plain_record_is_refused(kind):
    data, found = REFUSED[kind]
    with pytest.raises(FormatError, match=rf"member '.*': found {found}; expected regular files <key>\.safetensors alone. Do not unpack it"):
        list(tar_records(io.BytesIO(data)))


def test_a_plain_record_comes_with_its_offset():
    assert list(tar_records(io.BytesIO(member("a-00000.safetensors")))) == [("a-00000", 512, RECORD)]


@pytest.fixture
def view(tmp_path):
    rng = np.random.default_rng(0)
    shards = write_shards(tmp_path / "view", "a", [({"coords": rng.normal(size=(n, 2))}, n, 0) for n in range(1, 9)])
    write_view(tmp_path / "view", shards, made_from={})
    return View(tmp_path / "view")


def shard_of(view: View):
    return view.where.local / view.places[0].shard


def test_every_record_comes_in_the_order_of_the_shards(view):
    samples = list(stream_view(view))
    assert [sample["__key__"] for sample in samples] == [place.key for place in view.places]
    for number, sample in enumerate(samples):
        np.testing.assert_array_equal(sample["coords"], view.read(number)["coords"])


def test_a_buffer_mixes_the_records(view):
    keys = [sample["__key__"] for sample in stream_view(view, n_buffered=8)]
    assert keys != [place.key for place in view.places]
    assert sorted(keys) == sorted(place.key for place in view.places)


def test_a_flipped_bit_is_named(view):
    place, data = view.places[5], bytearray(shard_of(view).read_bytes())
    data[place.offset + place.nbytes - 1] ^= 1
    shard_of(view).write_bytes(data)
    with pytest.raises(FormatError, match=rf"shard .*{place.shard}: record {place.key}, offset {place.offset}: bytes differ from those written"):
        list(stream_view(view))


@pytest.mark.parametrize("n_records", [0, 3])
def test_a_shard_that_ends_early_is_not_taken_for_whole(view, n_records):
    end = view.places[n_records].offset - tarfile.BLOCKSIZE
    shard_of(view).write_bytes(shard_of(view).read_bytes()[:end] + bytes(2 * tarfile.BLOCKSIZE))
    with pytest.raises(FormatError, match=rf"shard .*: found {n_records} records; expected 8"):
        list(stream_view(view))


def test_a_record_that_the_index_does_not_name_is_refused(view):
    shard_of(view).write_bytes(member("other-00000.safetensors"))
    with pytest.raises(FormatError, match="record other-00000, offset 512: not in the index of its view"):
        list(stream_view(view))
