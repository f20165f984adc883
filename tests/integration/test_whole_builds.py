"""`stofm build` on folders and patterns of files: sections become slices, donors keep to one split, a dry run writes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from cli import refused, succeed, write_yaml

from corpus.store import Corpus

SPLIT_OF_DONOR = {"twin": "train", "single": "test", "named": "train"}


@pytest.fixture(scope="module")
def config(simulated_paths, tmp_path_factory) -> Path:
    """Settings for one file of two sections, found by a pattern, and for a folder of two files, one of which has settings of its own."""
    here = tmp_path_factory.mktemp("whole")
    (here / "sections/deeper").mkdir(parents=True)
    (here / "plain").mkdir()
    table = anndata.read_h5ad(simulated_paths[0])
    table.obs["slab"] = np.array(["a", "b"])[np.arange(400) % 2]
    table.write_h5ad(here / "sections/deeper/pair.h5ad")
    for path in simulated_paths[1:]:
        shutil.copy(path, here / "plain")
    (here / "plain/notes.txt").write_text("no slice")
    settings = {
        "out": str(here / "corpus"),
        "slices": [{"path": str(here / "plain/slice_2.h5ad"), "slice_id": "by_name", "donor": "named"}],
        "sources": [
            {"path": str(here / "sections/**/*.h5ad"), "section_key": "slab", "donor": "twin"},
            {"path": str(here / "plain"), "donor": "single"},
        ],
        "splits": {"shares": {"train": 0.5, "test": 0.5}, "fixed": SPLIT_OF_DONOR},
        "scales": {"sub_slices": {"n_cells": 100}},
        "tasks": {"n_workers": 1},
    }
    return write_yaml(here / "build.yaml", settings)


@pytest.fixture(scope="module")
def built(config) -> tuple[Corpus, str]:
    """The corpus, and what the command said."""
    said = succeed("build", config)
    return Corpus(config.parent / "corpus"), said


def test_a_dry_run_names_every_input_and_writes_nothing(config):
    out = config.parent / "planned"
    said = succeed("build", config, f"out={out}", "--dry-run").splitlines()
    assert [line.split(", ")[0] for line in said[:-1]] == ["by_name: 400 cells", "pair: 400 cells", "slice_1: 400 cells"]
    assert said[-1].startswith("3 slices: ")
    assert said[-1].endswith("by 1 workers. Nothing was built.")
    assert not out.exists()


def test_every_section_and_every_match_is_a_slice_and_every_cell_is_accounted_for(built):
    corpus, said = built
    assert sorted(corpus.slice_ids) == ["by_name", "pair-a", "pair-b", "slice_1"]
    assert {entry["slice_id"]: entry["n_in"] for entry in corpus.manifest["slices"]} == {"by_name": 400, "pair-a": 200, "pair-b": 200, "slice_1": 400}
    assert "slices: 4 = 4 kept + 0 left out + 0 set aside" in said
    assert "cells: 1,200 = 1,200 kept" in said


@pytest.mark.parametrize(("name", "first"), [("pair-a", 0), ("pair-b", 1)])
def test_a_section_has_the_counts_of_its_rows(built, simulated_paths, name, first):
    given = anndata.read_h5ad(simulated_paths[0]).X.toarray()[first::2]
    np.testing.assert_array_equal(built[0].truth(name).counts.toarray(), given)


def test_donors_keep_to_the_split_that_they_were_given(built):
    corpus, _ = built
    rows = pd.read_parquet(Path(corpus.folder) / "splits.parquet").set_index("slice_id")
    assert rows["donor"].to_dict() == {"by_name": "named", "pair-a": "twin", "pair-b": "twin", "slice_1": "single"}
    expected = {name: SPLIT_OF_DONOR[donor] for name, donor in rows["donor"].items()}
    assert rows["split"].to_dict() == expected
    assert {entry["slice_id"]: entry["split"] for entry in corpus.manifest["slices"]} == expected
    index = pd.read_parquet(Path(corpus.folder) / "views/tokens/index.parquet")
    assert set(zip(index["slice_id"], index["split"], strict=True)) == set(expected.items())


def test_a_pattern_that_matches_nothing_is_refused(config, tmp_path):
    line = refused("build", config, f"out={tmp_path / 'out'}", f"sources=[{{path: {tmp_path}/none/*.h5ad}}]")
    assert f"sources: {tmp_path}/none/*.h5ad: found no slice; expected some. Check the path." in line
    assert not (tmp_path / "out").exists()
