"""What a corpus says of itself: valid metadata for catalogues, every slice and every reason in the datasheet, no clock in either."""

from __future__ import annotations

import json
import shutil

import mlcroissant
import pytest

from corpus.descriptions import croissant, datasheet, totals_of
from stofm.durable import file_sha256, read_json


@pytest.fixture
def view(tiny_corpus):
    return read_json(tiny_corpus.folder / "views" / "tokens" / "view.json")


def test_the_corpus_carries_its_descriptions(tiny_corpus, view):
    assert (tiny_corpus.folder / "croissant.json").read_text() == croissant(tiny_corpus.manifest, view)
    assert (tiny_corpus.folder / "DATASHEET.md").read_text() == datasheet(tiny_corpus.manifest, view)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # mlcroissant's own dependencies
def test_croissant_finds_it_valid_and_reads_the_index(tiny_corpus, tmp_path):
    shutil.copytree(tiny_corpus.folder, tmp_path / "corpus")
    dataset = mlcroissant.Dataset(jsonld=tmp_path / "corpus" / "croissant.json")
    assert not dataset.metadata.ctx.issues.errors
    keys = [row["sub_slices/key"].decode() for row in dataset.records("sub_slices")]
    assert keys == [place.key for place in tiny_corpus.token_view().places]


def test_croissant_names_every_shard_and_truth_with_its_hash(tiny_corpus, view):
    files = {one["contentUrl"]: one["sha256"] for one in json.loads(croissant(tiny_corpus.manifest, view))["distribution"]}
    shards = [f"views/tokens/{shard['name']}" for shard in view["shards"]]
    truths = [f"slices/{slice_id}/cells.zarr.zip" for slice_id in tiny_corpus.slice_ids]
    assert sorted(files) == sorted(["views/tokens/index.parquet", *shards, *truths])
    assert files == {path: file_sha256(tiny_corpus.folder / path) for path in files}


def entry(name: str, technology: str, n_cells: int, **more):
    audit = {"share_of_counts_mapped": 0.5}
    return {"slice_id": name, "n_cells": n_cells, "n_sub_slices": 2, "source": {"technology": technology, "species": "human", "license": "CC0"},
            "genes_audit": audit, "labels": ["region"], "files": [], **more}  # fmt: skip


MANIFEST = {
    "corpus_id": "0123456789abcdef",
    "slices": [
        entry("a", "Xenium", 10, dropped={"NO_COUNTS": 3}, split="train"),
        entry("b", "Visium", 5, dropped={"NO_COUNTS": 1, "NOT_FINITE": 1}, split="test"),
        entry("c", "Xenium", 7, split="train"),
    ],
    "quarantined": [{"slice_id": "d", "code": "NOT_COUNTS", "detail": "found 0.5 | among\ncounts"}],
}
VIEW = {"view_id": "v", "n_records": 6, "n_cells": 22, "shards": [], "index": {"bytes": 1, "sha256": "0"}}


def test_totals_add_up():
    totals = totals_of(MANIFEST["slices"])
    assert totals["all"] == {"slices": 3, "cells": 22, "sub_slices": 6}
    assert totals["by_technology"] == {"Visium": {"slices": 1, "cells": 5, "sub_slices": 2}, "Xenium": {"slices": 2, "cells": 17, "sub_slices": 4}}
    assert totals["by_species"] == {"human": totals["all"]}


@pytest.mark.parametrize(
    "line",
    [
        "| Xenium | 2 | 17 | 4 |",
        "Cells left out: NOT_FINITE 1, NO_COUNTS 4.",
        "| d | NOT_COUNTS | found 0.5 / among counts |",
        "Splits, in slices: test 1, train 2.",
        "| b | Visium | human | not stated | not stated | CC0 | 5 | 2 | 50.0% |",
        "Licences of the sources: CC0.",
    ],
)
def test_the_datasheet_says_what_is_in_the_corpus_and_what_is_not(line):
    assert line in datasheet(MANIFEST, VIEW)
