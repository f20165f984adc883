"""Duplicates: which slices are one group, which of them stays, what is left to a person."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from synth import random_counts

from corpus.duplicates import SliceFacts, find_duplicates, write_duplicates
from corpus.sketch import sketch_slice
from stofm.errors import DataError

GENES = np.array([f"ENSG{number:011d}" for number in range(60)])
COUNTS = random_counts(0, 1000, 60)
OTHER = random_counts(1, 900, 60)


def facts(name: str, **more) -> SliceFacts:
    return SliceFacts(**{"slice_id": name, "source_id": f"file of {name}", "content_id": f"content of {name}", **more})


def requantified(counts: csr_matrix) -> csr_matrix:
    """A third of the molecules lost, so that hardly a gene set stays."""
    thinned = counts.copy()
    thinned.data = np.random.default_rng(2).binomial(counts.data.astype(int), 0.67)
    thinned.eliminate_zeros()
    return thinned


def outcome(rows) -> dict[str, tuple[bool, str, str]]:
    return {row.slice_id: (row.kept, row.reason, row.copy_of) for row in rows}


CASES = {
    "the same cells in another order": ({"a": COUNTS, "b": COUNTS[::-1], "c": OTHER}, {"a": (True, "kept", ""), "b": (False, "same cells", "a")}),
    "a crop": ({"a": COUNTS[:100], "b": COUNTS, "c": OTHER}, {"a": (False, "same cells", "b"), "b": (True, "kept", "")}),
    "parts and their union": (
        {"a": COUNTS[:500], "b": COUNTS[500:], "c": COUNTS},
        {"a": (False, "same cells", "c"), "b": (False, "same cells", "c"), "c": (True, "kept", "")},
    ),
    "some of the same cells": (
        {"a": COUNTS[:600], "b": COUNTS[400:], "c": OTHER},
        {"a": (True, "review: some of the same cells", "b"), "b": (True, "review: some of the same cells", "a")},
    ),
    "quantified again": ({"a": COUNTS, "b": requantified(COUNTS), "c": OTHER}, {"a": (True, "kept", ""), "b": (True, "review: alike profile", "a")}),
    "other slices": ({"a": COUNTS[:500], "b": COUNTS[500:], "c": OTHER}, {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("order", [1, -1], ids=["in order", "reversed"])
def test_what_becomes_of_slices(case, order):
    slices, expected = CASES[case]
    names = list(slices)[::order]
    rows = find_duplicates([facts(name) for name in names], [sketch_slice(name, slices[name], GENES) for name in names])
    assert outcome(rows) == expected
    assert len({row.group for row in rows}) == min(1, len(rows))


@pytest.mark.parametrize(("field", "reason"), [("source_id", "same file"), ("content_id", "same content")])
def test_slices_of_equal_hash_are_one(field, reason):
    rows = find_duplicates([facts(name, **{field: "equal"}) for name in "ab"], [sketch_slice("a", COUNTS, GENES), sketch_slice("b", OTHER, GENES)])
    assert outcome(rows)["b"] == (False, reason, "a")


def test_a_copy_on_fewer_genes_goes():
    sketches = [sketch_slice("a", csr_matrix(COUNTS[:, ::2]), GENES[::2]), sketch_slice("b", COUNTS, GENES)]
    assert outcome(find_duplicates([facts("a"), facts("b")], sketches)) == {"a": (False, "same cells, fewer genes", "b"), "b": (True, "kept", "")}


def test_raw_counts_stay_before_more_cells():
    sketches = [sketch_slice("a", COUNTS, GENES), sketch_slice("b", COUNTS[:950], GENES)]
    rows = find_duplicates([facts("a", is_raw=False), facts("b")], sketches)
    assert outcome(rows) == {"a": (False, "same cells", "b"), "b": (True, "kept", "")}


def test_a_larger_slice_does_not_go_for_a_part_with_raw_counts():
    sketches = [sketch_slice("a", COUNTS, GENES), sketch_slice("b", COUNTS[:100], GENES)]
    rows = find_duplicates([facts("a", is_raw=False), facts("b")], sketches)
    assert {row.slice_id: row.kept for row in rows} == {"a": True, "b": True}
    assert len({row.group for row in rows}) == 1


def test_sets_that_recur_within_a_slice_prove_nothing():
    few = random_counts(3, 1000, 8)
    sketches = [sketch_slice("a", few, GENES[:8]), sketch_slice("b", few[:500], GENES[:8])]
    assert sketches[0].twin_share > 0.5
    assert find_duplicates([facts("a"), facts("b")], sketches) == []


def test_keep_drops_nothing_and_refuse_names_the_copy():
    sketches = [sketch_slice(name, COUNTS, GENES) for name in "ab"]
    assert [row.kept for row in find_duplicates([facts("a"), facts("b")], sketches, policy="keep")] == [True, True]
    with pytest.raises(DataError, match=r"slice 'b': same cells as slice 'a' \(1 such slices\); expected every slice once"):
        find_duplicates([facts("a"), facts("b")], sketches, policy="refuse")


def test_the_table_has_its_columns_even_when_empty(tmp_path):
    write_duplicates(tmp_path / "dedup.parquet", [])
    assert pd.read_parquet(tmp_path / "dedup.parquet").columns.tolist() == ["group", "slice_id", "kept", "reason", "copy_of", "score"]
