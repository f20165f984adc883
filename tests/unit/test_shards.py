"""Training shards and views: the same bytes for the same records, open to any tar reader, and no damage read as data."""

from __future__ import annotations

import gc
import io
import json
from dataclasses import asdict, replace
from itertools import chain, pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from safetensors.numpy import load

from corpus import shards
from corpus.record import pack_record, parse_record
from corpus.shards import Shard, deal_records, pack_shard, write_shards, write_view
from corpus.view import CHECKED_EVERY, View
from stofm.durable import file_sha256, tree_sha256
from stofm.errors import FormatError

SLICES = {"slice_a": 0, "slice-b": 1}


def records(n: int = 7, seed: int = 0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 400, n)
    return [
        ({"tokens": rng.integers(0, 9, size).astype(np.uint16), "coords": rng.normal(size=(size, 2)).astype(np.float32)}, int(size), 5)
        for size in sizes
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A view of two slices, seven records each, three to a shard, dealt by their names."""
    monkeypatch.setattr(shards, "RECORDS_PER_SHARD", 3)
    return written(tmp_path / "view")


def written(folder):
    of_slice = {slice_id: records(seed=seed) for slice_id, seed in SLICES.items()}
    packed = [
        pack_shard(folder, f"shard-{number:05d}", ((slice_id, j, of_slice[slice_id][j]) for slice_id, j in members))
        for number, members in enumerate(deal_records(dict.fromkeys(SLICES, 7), salt="abc"))
    ]
    facts = {"slice_a": {"technology": "Xenium", "species": "human", "tissue": "brain", "split": "train", "donor": "d"}}
    write_view(folder, packed, made_from={"vocabulary": "abc"}, facts=facts)
    return folder


def of_key(key: str):
    slice_id, _, number = key.rpartition("-")
    return records(seed=SLICES[slice_id])[int(number)]


def test_every_record_is_read_back_in_any_order(folder):
    view = View(folder)
    assert len(view) == 14
    assert view.meta["made_from"] == {"vocabulary": "abc"}
    for number in np.random.default_rng(0).permutation(14):
        arrays, (expected, n_cells, longest) = view.read(number), of_key(view.places[number].key)
        assert sorted(arrays) == ["coords", "tokens"]
        np.testing.assert_array_equal(arrays["tokens"], expected["tokens"])
        np.testing.assert_array_equal(arrays["coords"], expected["coords"])
        assert arrays["tokens"].dtype == np.uint16
        assert (view.places[number].n_cells, view.places[number].longest) == (n_cells, longest)


def test_a_view_holds_every_record_once_and_mixes_the_slices(folder):
    places = View(folder).places
    assert sorted(place.key for place in places) == [f"{slice_id}-{number:05d}" for slice_id in sorted(SLICES) for number in range(7)]
    assert sum(one.slice_id != other.slice_id for one, other in pairwise(places)) > 3


def test_records_are_dealt_by_their_names_alone():
    dealt = deal_records({"a": 300, "b": 500}, salt="x")
    assert [len(members) for members in dealt] == [256, 256, 256, 32]
    assert dealt == deal_records({"b": 500, "a": 300}, salt="x")
    assert dealt != deal_records({"a": 300, "b": 500}, salt="y")
    assert sorted(chain(*dealt)) == [("a", number) for number in range(300)] + [("b", number) for number in range(500)]
    assert sum(slice_id == "a" for slice_id, _ in dealt[0]) == pytest.approx(96, abs=30)


def test_equal_records_give_equal_bytes_whatever_the_order_of_their_arrays(folder, tmp_path):
    before = tree_sha256(folder)
    assert tree_sha256(written(tmp_path / "again")) == before
    flipped = [(dict(reversed(arrays.items())), n, longest) for arrays, n, longest in records()]
    assert write_shards(tmp_path / "flipped", "slice_a", flipped) == write_shards(tmp_path / "straight", "slice_a", records())


def test_a_shard_is_named_by_its_content_and_comes_back_from_json(tmp_path):
    for shard in write_shards(tmp_path, "slice_a", records()):
        assert shard.name == f"slice_a-00000-{file_sha256(tmp_path / shard.name)[:16]}.tar"
        assert (tmp_path / shard.name).stat().st_size == shard.nbytes
        assert Shard.from_json(json.loads(json.dumps(asdict(shard)))) == shard


def test_a_slice_fills_as_many_shards_as_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "RECORDS_PER_SHARD", 3)
    written = write_shards(tmp_path, "slice_a", records())
    assert [len(shard.places) for shard in written] == [3, 3, 1]
    assert write_shards(tmp_path, "none", []) == []


def test_the_index_says_where_a_record_lies_and_what_is_known_of_its_slice(folder):
    index = pq.read_table(folder / "index.parquet").to_pandas()
    assert index["ordinal"].tolist() == list(range(14))
    assert index.columns.tolist() == ["ordinal", "key", "slice_id", "shard", "offset", "nbytes", "xxh3", "n_cells", "longest",
                                      "technology", "species", "tissue", "split"]  # fmt: skip
    known = index[["technology", "species", "tissue", "split"]].drop_duplicates().to_numpy().tolist()
    assert sorted(known) == [["", "", "", ""], ["Xenium", "human", "brain", "train"]]
    for _, row in index.iterrows():
        data = (folder / row["shard"]).read_bytes()[row["offset"] : row["offset"] + row["nbytes"]]
        assert data == pack_record(of_key(row["key"])[0])


def test_writing_a_view_again_removes_the_shards_of_earlier_tries(folder):
    kept = [Shard(one["name"], one["bytes"], one["sha256"], ()) for one in View(folder).meta["shards"]]
    (folder / "shard-00000-0123456789abcdef.tar").write_bytes(b"old")
    write_view(folder, kept, made_from={})
    assert sorted(path.name for path in folder.glob("*.tar")) == sorted(shard.name for shard in kept)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves closing to the garbage collector
def test_webdataset_reads_every_record_of_every_shard(folder):
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = {sample["__key__"]: load(sample["safetensors"]) for sample in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)}
    view = View(folder)
    assert list(samples) == [place.key for place in view.places]
    for number, place in enumerate(view.places):
        np.testing.assert_array_equal(samples[place.key]["coords"], view.read(number)["coords"])
    gc.collect()


@pytest.mark.parametrize("number", [0, 4, 13])
def test_a_flipped_bit_is_named_with_shard_record_and_offset(folder, number):
    place = View(folder).places[number]
    data = bytearray((folder / place.shard).read_bytes())
    data[place.offset + place.nbytes // 2] ^= 1
    (folder / place.shard).write_bytes(data)
    view = View(folder)
    with pytest.raises(FormatError, match=rf"shard .*{place.shard}, record {place.key}, offset {place.offset}: bytes differ from those written"):
        view.read(number)
    assert sorted(view.read((number + 1) % 14)) == ["coords", "tokens"]


@pytest.mark.parametrize("number", [0, 4, 13])
def test_a_bit_that_flips_under_an_open_view_is_named_within_16_reads(folder, number):
    view = View(folder)
    place = view.places[number]
    view.read(number)
    with (folder / place.shard).open("r+b") as shard:
        shard.seek(place.offset + place.nbytes - 1)
        last = shard.read(1)[0]
        shard.seek(-1, io.SEEK_CUR)
        shard.write(bytes([last ^ 1]))
    with pytest.raises(FormatError, match=rf"shard .*{place.shard}, record {place.key}, offset {place.offset}: bytes differ from those written"):
        [view.read(number) for _ in range(CHECKED_EVERY)]


def test_any_record_of_a_view_of_many_is_read_any_number_of_times(tmp_path):
    made = records(300)
    shard = pack_shard(tmp_path, "shard-00000", (("slice_a", number, record) for number, record in enumerate(made)))
    write_view(tmp_path, [shard], made_from={"vocabulary": "abc"}, facts={"slice_a": {}})
    view = View(tmp_path)
    for number in [*range(300), *range(300), *[299] * 300]:
        np.testing.assert_array_equal(view.read(number)["tokens"], made[number][0]["tokens"])


@pytest.mark.parametrize("n_missing", [1, 300])
def test_a_truncated_shard_is_refused_at_opening(folder, n_missing):
    path = folder / View(folder).places[4].shard
    path.write_bytes(path.read_bytes()[:-n_missing])
    with pytest.raises(FormatError, match=rf"shard .*{path.name}: found \d+ bytes; expected \d+"):
        View(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: next(folder.glob("shard-00000-*.tar")).unlink(), r"shard-00000-\w+.tar: found 0 bytes"),
        (lambda folder: (folder / "index.parquet").unlink(), "index.parquet: no such file; expected one"),
        (lambda folder: index_of_another_view(folder), "index.parquet is not the one that view.json names"),
        (lambda folder: (folder / "view.json").unlink(), "view.json: .*expected a JSON object"),
        (lambda folder: (folder / "view.json").write_text('{"format": "stofm-view/9"}'), "found format 'stofm-view/9'; expected 'stofm-view/1'"),
    ],
    ids=["no shard", "no index", "other index", "no view.json", "other format"],
)
def test_a_view_that_is_not_whole_is_refused(folder, spoil, message):
    spoil(folder)
    with pytest.raises(FormatError, match=message):
        View(folder)


def index_of_another_view(folder):
    kept, (first, *_) = (folder / "view.json").read_bytes(), write_shards(folder, "slice_a", records())
    write_view(folder, [replace(first, places=first.places[::-1])], made_from={})
    (folder / "view.json").write_bytes(kept)


def test_another_view_than_the_one_asked_for_is_refused(folder):
    view_id = View(folder).view_id
    assert View(folder, view_id=view_id).view_id == view_id
    with pytest.raises(FormatError, match=f"found view {view_id}; expected 0123456789abcdef"):
        View(folder, view_id="0123456789abcdef")


def test_a_failure_in_the_middle_leaves_no_part_of_the_shard(tmp_path):
    def cut_off():
        yield from records()
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        write_shards(tmp_path / "view", "slice_a", cut_off())
    assert not list(tmp_path.rglob("*.*"))


DTYPES = ["?", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0,), (3,), (2, 0), (4, 2), ()], ids=str)
def test_records_keep_every_dtype_and_shape_and_are_views_of_the_bytes(dtype, shape):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    data = b"before" + pack_record({"one": array, "other": np.arange(5.0)})
    again = parse_record(data, 6)
    np.testing.assert_array_equal(again["one"], array)
    assert (again["one"].dtype, again["one"].shape) == (array.dtype, array.shape)
    assert again["other"].base is not None
    assert not again["other"].flags.writeable


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x80\x04K\x01.", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]", (4).to_bytes(8, "little") + b"{no}",
        *((len(header := json.dumps({"a": field}).encode())).to_bytes(8, "little") + header + bytes(8) for field in (
            {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}, {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]},
            {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}, {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}, 3)),
    ],
    ids=["empty", "pickle", "long header", "list", "no JSON", "too long", "too short", "before", "dtype", "number"],
)  # fmt: skip
def test_bytes_that_are_no_record_are_refused(data):
    with pytest.raises(FormatError, match="expected a safetensors record"):
        parse_record(data)
