"""Splits: shares by whole donors, groups that stay together, and what a hand-made split may not do."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from corpus.splits import SliceOrigin, SplitConfig, assign_splits, write_splits
from stofm.errors import ConfigError

THREE = {"train": 0.8, "validation": 0.1, "test": 0.1}


def origins(donors: list[str], *, study: str = "study", n_cells: int = 100) -> list[SliceOrigin]:
    return [SliceOrigin(f"slice_{number}", donor, study, n_cells) for number, donor in enumerate(donors)]


def splits_of(rows) -> dict[str, str]:
    return {row.slice_id: row.split for row in rows}


some_origins = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2), st.integers(1, 5000)), min_size=1, max_size=25).map(
    lambda rows: [SliceOrigin(f"slice_{number}", f"donor_{donor}", f"study_{study}", n) for number, (donor, study, n) in enumerate(rows)]
)


@given(some_origins, st.sampled_from(["donor", "study"]), st.integers(0, 3), st.randoms())
def test_nothing_of_a_unit_is_in_two_splits_whatever_the_order(found, by, seed, random):
    groups = [[one.slice_id for one in found[:2]], [one.slice_id for one in found[-2:]]]
    config = SplitConfig(by=by, seed=seed)
    rows = assign_splits(found, groups, config)
    assert [row.slice_id for row in rows] == sorted(one.slice_id for one in found)
    together = defaultdict(set)
    for row in rows:
        together[row.study, row.donor if by == "donor" else ""].add(row.split)
    assert all(len(splits) == 1 for splits in together.values())
    assert all(len({splits_of(rows)[member] for member in group}) == 1 for group in groups)
    mixed = list(found)
    random.shuffle(mixed)
    assert assign_splits(mixed, [group[::-1] for group in groups[::-1]], config) == rows


@pytest.mark.parametrize("seed", range(3))
def test_shares_are_kept_where_donors_are_many(seed):
    rows = assign_splits(origins([f"donor_{number}" for number in range(200)]), [], SplitConfig(seed=seed))
    shares = {split: np.mean([row.split == split for row in rows]) for split in THREE}
    assert shares == pytest.approx(THREE, abs=0.01)


def test_another_seed_gives_another_split():
    found = origins([f"donor_{number}" for number in range(50)])
    assert assign_splits(found, [], SplitConfig(seed=0)) != assign_splits(found, [], SplitConfig(seed=1))


@pytest.mark.parametrize(("n_donors", "expected"), [(1, {"train"}), (3, {"train", "validation", "test"})])
def test_a_split_is_empty_only_if_donors_are_too_few(n_donors, expected):
    rows = assign_splits(origins([f"donor_{number}" for number in range(n_donors)]), [], SplitConfig())
    assert {row.split for row in rows} == expected


def test_a_split_without_a_share_gets_nothing():
    rows = assign_splits(origins([f"donor_{number}" for number in range(9)]), [], SplitConfig(shares={"train": 0.5, "test": 0.5}))
    assert {row.split for row in rows} == {"train", "test"}


def test_donors_of_one_name_in_two_studies_are_two():
    found = [*origins(["1"], study="one"), SliceOrigin("other", "1", "two", 100)]
    assert len({row.unit for row in assign_splits(found, [], SplitConfig())}) == 2


@pytest.mark.parametrize("name", ["slice_1", "mouse"])
def test_a_split_set_by_hand_holds_for_the_whole_donor(name):
    rows = assign_splits(origins(["man", "mouse", "mouse"]), [], SplitConfig(fixed={name: "test"}))
    assert splits_of(rows) == {"slice_0": "train", "slice_1": "test", "slice_2": "test"}


@pytest.mark.parametrize(
    ("fixed", "groups"),
    [({"slice_1": "train", "slice_2": "test"}, []), ({"mouse": "train", "man": "test"}, [["slice_0", "slice_2"]])],
    ids=["one donor", "one group of duplicates"],
)
def test_hands_that_tear_apart_what_belongs_together_are_refused(fixed, groups):
    with pytest.raises(ConfigError, match=r"is fixed to (train|test) and '\w+' to (train|test), but slice .* expected one split"):
        assign_splits(origins(["man", "mouse", "mouse"]), groups, SplitConfig(fixed=fixed))


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match="`fixed` names 'rat', which is no slice, donor or study"):
        assign_splits(origins(["mouse"]), [], SplitConfig(fixed={"rat": "test"}))


@pytest.mark.parametrize("shares", [{"train": 0.5}, {"train": 1.2, "test": -0.2}, {}], ids=["half", "negative", "none"])
def test_shares_must_add_up(shares):
    with pytest.raises(ValidationError, match="expected shares of at least 0 that add up to 1"):
        SplitConfig(shares=shares)


def test_the_table_is_written(tmp_path):
    write_splits(tmp_path / "splits.parquet", assign_splits(origins(["man", "mouse"]), [], SplitConfig()))
    assert pd.read_parquet(tmp_path / "splits.parquet").columns.tolist() == ["slice_id", "split", "unit", "donor", "study"]
