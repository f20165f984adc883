"""`stofm corpus`: every kind of damage is named, what can be made again is made again to the same bytes, and nothing else is touched."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from cli import contents, refused, stofm, succeed
from synth import corpus_config

from corpus import shards
from corpus.build import build_corpus
from corpus.store import Corpus


@pytest.fixture(scope="module")
def whole(simulated_paths, tmp_path_factory):
    """A corpus in three shards; tests copy it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "RECORDS_PER_SHARD", 4)
        return build_corpus(corpus_config(simulated_paths, tmp_path_factory.mktemp("corpora") / "whole")).folder


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(whole, tmp_path / "corpus")


def flip(path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


def one(folder, pattern: str):
    return sorted(folder.glob(pattern))[0]


SHARD, STORE, TRUTH = "views/tokens/shard-00001-*.tar", "slices/slice_1/tokens-*.zarr.zip", "slices/slice_1/cells.zarr.zip"
DAMAGES = {
    "shard flipped": (SHARD, lambda path: flip(path, 5000), "bytes differ from those written"),
    "shard cut off": (SHARD, lambda path: path.write_bytes(path.read_bytes()[:-700]), r"found \d+ bytes; expected \d+"),
    "shard missing": (SHARD, lambda path: path.unlink(), "missing"),
    "shard replaced": (SHARD, lambda path: path.write_bytes(bytes(path.stat().st_size)), "bytes differ from those written"),
    "store flipped": (STORE, lambda path: flip(path, 900), "bytes differ from those written"),
    "store missing": (STORE, lambda path: path.unlink(), "missing"),
    "datasheet edited": ("DATASHEET.md", lambda path: path.write_text("mine"), "missing or not what the manifest says"),
    "croissant missing": ("croissant.json", lambda path: path.unlink(), "missing or not what the manifest says"),
}
BEYOND_REPAIR = {
    "truth flipped": (TRUTH, lambda path: flip(path, 900), "bytes differ from those written"),
    "truth missing": (TRUTH, lambda path: path.unlink(), "missing"),
    "vocabulary edited": ("gene_vocab.csv", lambda path: flip(path, 60), "bytes differ from those written"),
    "index cut off": ("views/tokens/index.parquet", lambda path: path.write_bytes(path.read_bytes()[:-4]), r"found \d+ bytes; expected \d+"),
}
REPAIRABLE = pytest.mark.parametrize(("pattern", "spoil", "found"), DAMAGES.values(), ids=DAMAGES)
LOST = pytest.mark.parametrize(("pattern", "spoil", "found"), BEYOND_REPAIR.values(), ids=BEYOND_REPAIR)


def test_a_whole_corpus_is_said_to_be_whole(folder):
    assert f"corpus corpus: whole, id {Corpus(folder).corpus_id[:12]}" in succeed("corpus", "verify", "corpus")
    assert "whole, 0 files repaired" in succeed("corpus", "repair", "corpus")


@REPAIRABLE
def test_damage_is_named_and_repaired_to_the_same_bytes_and_nothing_else_is_written(folder, whole, pattern, spoil, found):
    path = one(folder, pattern)
    times = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file() and file != path}
    spoil(path)
    assert_named(path.relative_to(folder).as_posix(), found)
    assert f"repaired: {path.relative_to(folder).as_posix()}" in succeed("corpus", "repair", "corpus")
    assert contents(folder) == contents(whole)
    assert {file: file.stat().st_mtime_ns for file in times} == times


@LOST
def test_what_only_a_build_can_make_is_named_and_left(folder, pattern, spoil, found):
    path = one(folder, pattern)
    spoil(path)
    before = contents(folder)
    assert_named(path.relative_to(folder).as_posix(), found)
    outcome = stofm("corpus", "repair", "corpus")
    assert outcome.code == 2
    assert "1 of 1 files could not be repaired (named above). Remove them and run `stofm build` again" in outcome.stderr
    assert contents(folder) == before


def assert_named(path: str, found: str) -> None:
    outcome = stofm("corpus", "verify", "corpus")
    assert outcome.code == 2
    assert {line.split(": ")[1] for line in outcome.stdout.splitlines() if line.startswith("damaged: ")} == {path}
    assert re.search(rf"damaged: {path}: {found}", outcome.stdout)
    assert "error: corpus corpus: found damage in 1 file (named above); expected none. Run `stofm corpus repair`." in outcome.stderr


@pytest.mark.parametrize("number", [0, 5, 8])
def test_a_flipped_bit_is_named_with_shard_key_and_offset(folder, number):
    place = Corpus(folder).token_view().places[number]
    flip(folder / "views" / "tokens" / place.shard, place.offset + place.nbytes - 1)
    lines = [line for line in stofm("corpus", "verify", "corpus").stdout.splitlines() if "record" in line]
    assert lines == [f"damaged: views/tokens/{place.shard}: record {place.key}, offset {place.offset}: bytes differ from those written"]


def test_a_store_is_repaired_before_the_shard_that_is_packed_from_it(folder, whole):
    one(folder, STORE).unlink()
    one(folder, SHARD).unlink()
    assert "2 files repaired" in succeed("corpus", "repair", "corpus")
    assert contents(folder) == contents(whole)


def test_a_shard_whose_sources_are_lost_is_left(folder):
    for pattern in (TRUTH, STORE, SHARD):
        one(folder, pattern).unlink()
    outcome = stofm("corpus", "repair", "corpus")
    assert outcome.code == 2
    assert "3 of 3 files could not be repaired" in outcome.stderr
    assert "not repaired: shard shard-00001" in outcome.stdout


def test_a_shard_is_left_where_the_index_is_damaged_too(folder):
    index, shard = folder / "views/tokens/index.parquet", one(folder, SHARD)
    flip(index, 100)
    flip(shard, 5000)
    outcome = stofm("corpus", "repair", "corpus")
    assert outcome.code == 2
    assert [line.split(": ")[1] for line in outcome.stdout.splitlines() if line.startswith("left: ")] == [
        path.relative_to(folder).as_posix() for path in (index, shard)
    ]


def test_an_edited_manifest_is_noticed(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["slices"][0]["n_cells"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "damaged: manifest.json: its content is not that of corpus" in stofm("corpus", "verify", "corpus").stdout


def test_the_view_of_another_corpus_is_refused(folder, simulated_paths, tmp_path):
    other = build_corpus(corpus_config(simulated_paths[:2], tmp_path / "other")).folder
    shutil.rmtree(folder / "views")
    shutil.copytree(other / "views", folder / "views")
    with pytest.raises(Exception, match=r"view .*: found view \w+; expected \w+, which its corpus names"):
        Corpus(folder).token_view()


def test_show_says_what_the_corpus_holds(folder):
    shown = succeed("corpus", "show", "corpus")
    assert "slice_1: 400 cells in 3 sub-slices; mouse, simulated; labels: cell_type, region" in shown
    assert "species human: 2 slices, 800 cells" in shown
    assert "3 slices, 1200 cells, 9 sub-slices" in shown


def test_a_folder_that_is_no_corpus_is_refused(tmp_path):
    assert "found a folder without a SToFM marker" in refused("corpus", "verify", tmp_path)
