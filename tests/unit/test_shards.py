"""Training shards: the same bytes for the same records, open to any tar reader, and no damage read as data."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest
import webdataset
from safetensors.numpy import load

from corpus import shards
from corpus.shards import View, write_shards, write_view
from stofm.durable import tree_sha256
from stofm.errors import FormatError


def records(n: int = 7, seed: int = 0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 400, n)
    return [
        ({"tokens": rng.integers(0, 9, size).astype(np.uint16), "coords": rng.normal(size=(size, 2)).astype(np.float32)}, int(size), 5)
        for size in sizes
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A view of two slices, seven records each, three to a shard."""
    monkeypatch.setattr(shards, "RECORDS_PER_SHARD", 3)
    return written(tmp_path / "view")


def written(folder):
    places = write_shards(folder, "slice_a", records()) + write_shards(folder, "slice-b", records(seed=1))
    write_view(folder, places, meta={"vocabulary": "abc"})
    return folder


def test_every_record_is_read_back_in_any_order(folder):
    view = View(folder)
    expected = records() + records(seed=1)
    assert len(view) == 14
    assert view.meta["vocabulary"] == "abc"
    for number in np.random.default_rng(0).permutation(14):
        arrays = view.read(number)
        assert sorted(arrays) == ["coords", "tokens"]
        np.testing.assert_array_equal(arrays["tokens"], expected[number][0]["tokens"])
        np.testing.assert_array_equal(arrays["coords"], expected[number][0]["coords"])
        assert arrays["tokens"].dtype == np.uint16
        assert view.places[number].n_cells == expected[number][1]


def test_equal_records_give_equal_bytes_whatever_the_order_of_their_arrays(folder, tmp_path):
    before = tree_sha256(folder)
    assert tree_sha256(written(tmp_path / "again")) == before
    flipped = [(dict(reversed(arrays.items())), n, longest) for arrays, n, longest in records()]
    write_shards(tmp_path / "flipped", "slice_a", flipped)
    assert tree_sha256(tmp_path / "flipped").items() <= before.items()


def test_a_shard_holds_no_more_records_than_the_limit(folder):
    view = View(folder)
    names = [place.shard for place in view.places]
    assert [names.count(name) for name in dict.fromkeys(names)] == [3, 3, 1, 3, 3, 1]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves closing to the garbage collector
def test_webdataset_reads_every_record_of_every_shard(folder):
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = {sample["__key__"]: load(sample["safetensors"]) for sample in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)}
    view = View(folder)
    assert sorted(samples) == sorted(place.key for place in view.places)
    for number, place in enumerate(view.places):
        np.testing.assert_array_equal(samples[place.key]["coords"], view.read(number)["coords"])
    gc.collect()


@pytest.mark.parametrize("number", [0, 4, 13])
def test_a_flipped_bit_is_named_with_shard_record_and_offset(folder, number):
    place = View(folder).places[number]
    data = bytearray((folder / place.shard).read_bytes())
    data[place.offset + place.size // 2] ^= 1
    (folder / place.shard).write_bytes(data)
    view = View(folder)
    with pytest.raises(FormatError, match=rf"shard .*{place.shard}, record {place.key}, offset {place.offset}: bytes differ from those written"):
        view.read(number)
    assert sorted(view.read((number + 1) % 14)) == ["coords", "tokens"]


@pytest.mark.parametrize("n_missing", [1, 300])
def test_a_truncated_shard_is_refused_at_opening(folder, n_missing):
    path = folder / "slice_a-00001.tar"
    end = max(place.offset + place.size for place in View(folder).places if place.shard == path.name)
    path.write_bytes(path.read_bytes()[: end - n_missing])
    with pytest.raises(FormatError, match=r"shard .*slice_a-00001\.tar: found \d+ bytes; expected at least \d+"):
        View(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "slice_a-00000.tar").unlink(), "slice_a-00000.tar: found 0 bytes"),
        (lambda folder: (folder / "index.parquet").unlink(), "index.parquet is missing or not the one"),
        (lambda folder: write_view_of_one_more(folder), "index.parquet is missing or not the one"),
        (lambda folder: (folder / "view.json").unlink(), "view.json: .*expected a JSON object"),
        (lambda folder: (folder / "view.json").write_text('{"format": "stofm-view/9"}'), "found format 'stofm-view/9'; expected 'stofm-view/1'"),
    ],
    ids=["no shard", "no index", "other index", "no view.json", "other format"],
)
def test_a_view_that_is_not_whole_is_refused(folder, spoil, message):
    spoil(folder)
    with pytest.raises(FormatError, match=message):
        View(folder)


def write_view_of_one_more(folder):
    kept = (folder / "view.json").read_bytes()
    places = View(folder).places
    write_view(folder, [*places, replace(places[0], key="other")], meta={})
    (folder / "view.json").write_bytes(kept)


def test_a_failure_in_the_middle_leaves_no_part_of_the_shard(tmp_path):
    def cut_off():
        yield from records()
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        write_shards(tmp_path / "view", "slice_a", cut_off())
    assert not list(tmp_path.rglob("*.*"))
