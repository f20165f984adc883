"""Derived stores: the records of a slice come back one by one, in the same bytes, and only for what they were made from."""

from __future__ import annotations

import numpy as np
import pytest

from corpus.derived import derived_path, open_derived, open_members, write_derived
from corpus.truth import read_truth
from stofm.errors import FormatError

MADE_FROM = {"truth": "a" * 64, "settings": "b" * 64}


def records(n: int = 5, seed: int = 0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 40, n)
    return [
        ({"rows": rng.integers(0, 99, size).astype(np.uint32), "tokens": rng.integers(0, 9, 3 * size).astype(np.uint16),
          "coords": rng.normal(size=(size, 2)).astype(np.float32)}, int(size), int(size) + 1) for size in sizes
    ]  # fmt: skip


@pytest.fixture
def path(tmp_path):
    assert write_derived(tmp_path / "tokens.zarr.zip", iter(records()), made_from=MADE_FROM) == 5
    return tmp_path / "tokens.zarr.zip"


def assert_equal(found, expected):
    assert found[1:] == expected[1:]
    assert sorted(found[0]) == sorted(expected[0])
    for name, array in expected[0].items():
        np.testing.assert_array_equal(found[0][name], array)
        assert found[0][name].dtype == array.dtype


@pytest.mark.parametrize("chunk", [8, 64, 2**18])
def test_every_record_comes_back_in_any_order(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("corpus.derived.CHUNK", chunk)
    write_derived(tmp_path / "a.zarr.zip", records(), made_from=MADE_FROM)
    with open_derived(tmp_path / "a.zarr.zip", made_from=MADE_FROM) as stored:
        assert len(stored) == 5
        for number in (4, 0, 2, 1, 3):
            assert_equal(stored[number], records()[number])


def test_a_slice_without_records_is_stored_too(tmp_path):
    assert write_derived(tmp_path / "a.zarr.zip", [], made_from=MADE_FROM) == 0
    with open_derived(tmp_path / "a.zarr.zip", made_from=MADE_FROM) as stored:
        assert len(stored) == 0


def test_equal_records_give_equal_bytes(path, tmp_path):
    write_derived(tmp_path / "again.zarr.zip", records(), made_from=dict(reversed(MADE_FROM.items())))
    assert (tmp_path / "again.zarr.zip").read_bytes() == path.read_bytes()


def test_the_name_tells_what_it_was_made_from(tmp_path):
    first = derived_path(tmp_path, "slice_a", "tokens", MADE_FROM)
    assert first == derived_path(tmp_path, "slice_a", "tokens", dict(reversed(MADE_FROM.items())))
    assert first.parent == tmp_path / "slices" / "slice_a"
    assert first.name.startswith("tokens-")
    assert first != derived_path(tmp_path, "slice_a", "tokens", {**MADE_FROM, "settings": "c" * 64})


def test_records_made_from_something_else_are_refused(path):
    with (
        pytest.raises(FormatError, match=r"tokens\.zarr\.zip: found records made from .*'settings': 'bbb.*; expected .*'settings': 'ccc"),
        open_derived(path, made_from={**MADE_FROM, "settings": "c" * 64}),
    ):
        pytest.fail("opened")


@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_a_damaged_store_is_refused(path, damage):
    kept = path.read_bytes()
    path.unlink()
    if damage == "cut off":
        path.write_bytes(kept[:-400])
    with pytest.raises(FormatError, match=r"tokens\.zarr\.zip: .*Build the corpus again"), open_derived(path, made_from=MADE_FROM):
        pytest.fail("opened")


def test_a_derived_store_is_no_truth(path):
    with pytest.raises(FormatError, match="expected 'stofm-truth/1'"):
        read_truth(path)


def test_members_of_a_shard_are_gathered_from_the_stores_of_their_slices(tmp_path):
    stores = {}
    for seed, slice_id in enumerate(["a", "b", "c"]):
        stores[slice_id] = (tmp_path / f"{slice_id}.zarr.zip", {"truth": slice_id})
        write_derived(stores[slice_id][0], records(seed=seed), made_from=stores[slice_id][1])
    members = [("b", 3), ("a", 0), ("b", 1)]
    with open_members(members, stores) as gathered:
        found = list(gathered)
    assert [(slice_id, number) for slice_id, number, _ in found] == members
    for (slice_id, number), (_, _, record) in zip(members, found, strict=True):
        assert_equal(record, records(seed="abc".index(slice_id))[number])


def test_a_fault_of_the_reader_of_a_store_is_not_taken_for_damage(path):
    with pytest.raises(ValueError, match="planted"), open_derived(path, made_from=MADE_FROM):
        raise ValueError("planted")
