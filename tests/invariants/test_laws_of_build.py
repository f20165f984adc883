"""Laws of a build: the same bytes every time, whether or not it was stopped, and every cell in one place."""

from __future__ import annotations

import itertools
import os
import shutil

import anndata
import numpy as np
import pytest
from synth import corpus_config

import corpus.build
from corpus.build import build_corpus
from corpus.rank_value import rank_value_encode
from corpus.store import Corpus
from corpus.view import View
from stofm.durable import tree_sha256
from stofm.errors import ConfigError
from stofm.fields import COORDS_UM, ROWS
from stofm.gene_tokens import GeneTokens


@pytest.fixture(scope="session")
def whole_build(simulated_paths, tmp_path_factory):
    """Hashes of the files of a corpus that was built without a stop into the folder ``corpus`` of the working directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        return tree_sha256(build_corpus(corpus_config(simulated_paths, "corpus")).folder)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_two_builds_are_the_same_bytes(here, simulated_paths, whole_build):
    assert tree_sha256(build_corpus(corpus_config(simulated_paths, "corpus")).folder) == whole_build


def failing_at(call: int, original):
    """A function that raises at its `call`-th call and is the original at all others."""
    calls = itertools.count(1)

    def stopping(*args, **kwargs):
        if next(calls) == call:
            raise RuntimeError("planted")
        return original(*args, **kwargs)

    return stopping


def planted(**_) -> None:
    raise RuntimeError("planted")


STOPS = {
    "no slice read": ("make_truth", planted),
    "no vocabulary": ("make_vocabulary", planted),
    "no tokens": ("make_tokens", planted),
    "no shards": ("make_shard", planted),
    "no index": ("make_view", planted),
    "no duplicates looked for": ("make_duplicates", planted),
    "swept, no manifest": ("write_json", planted),
    "nothing swept": ("sweep_unnamed", planted),
}


@pytest.mark.parametrize("stop", STOPS)
def test_a_build_that_was_stopped_is_finished_to_the_same_bytes(here, simulated_paths, whole_build, stop):
    config = corpus_config(simulated_paths, "corpus")
    with pytest.MonkeyPatch.context() as patch:
        name, function = STOPS[stop]
        patch.setattr(corpus.build, name, function if name.startswith("make") else failing_at(1, getattr(corpus.build, name)))
        with pytest.raises(RuntimeError, match="planted"):
            build_corpus(config)
    with pytest.raises(ConfigError, match="found no manifest, so its build did not finish"):
        Corpus(here / "corpus")
    assert tree_sha256(build_corpus(config).folder) == whole_build


def test_slices_read_before_the_stop_are_not_read_again(here, simulated_paths, monkeypatch):
    config = corpus_config(simulated_paths, "corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus.build, "make_tokens", planted)
        with pytest.raises(RuntimeError, match="planted"):
            build_corpus(config)
    before = [path.stat().st_mtime_ns for path in sorted((here / "corpus/slices").rglob("cells.zarr.zip"))]
    build_corpus(config)
    assert [path.stat().st_mtime_ns for path in sorted((here / "corpus/slices").rglob("cells.zarr.zip"))] == before


def test_a_finished_corpus_is_left_as_it_is_whatever_the_clocks_say(here, simulated_paths):
    config = corpus_config([shutil.copy(path, here) for path in simulated_paths], "corpus")
    build_corpus(config)
    for number, path in enumerate(here.rglob("*")):
        os.utime(path, (number % 2 * 2**32, number % 2 * 2**32))  # 1970 or 2106
    before = {path: path.stat().st_mtime_ns for path in (here / "corpus").rglob("*") if path.name != ".lock"}
    reports: list[str] = []
    build_corpus(config, report=reports.append)
    assert {path: path.stat().st_mtime_ns for path in (here / "corpus").rglob("*") if path.name != ".lock"} == before
    assert reports == ["corpus corpus is complete: 3 slices"]


def rows_of(view: View, slice_id: str) -> np.ndarray:
    return np.concatenate([view.read(number)[ROWS] for number, place in enumerate(view.places) if place.slice_id == slice_id])


@pytest.mark.parametrize("slice_id", ["slice_0", "slice_1", "slice_2"])
@pytest.mark.parametrize("view", ["tokens", "embedded"])
def test_every_cell_is_in_exactly_one_record(tiny_corpus, tiny_run, slice_id, view):
    truth = tiny_corpus.truth(slice_id)
    has_gene = np.diff(tiny_corpus.vocab.count(truth.counts, truth.human_ids).indptr) > 0
    rows = rows_of(tiny_corpus.token_view() if view == "tokens" else View(tiny_run / "views" / "embedded"), slice_id)
    assert np.sort(rows).tolist() == np.flatnonzero(has_gene).tolist()
    entry = next(entry for entry in tiny_corpus.manifest["slices"] if entry["slice_id"] == slice_id)
    assert (entry["n_cells"], entry["n_cells_without_gene"], entry["n_sub_slices"]) == (400, 400 - len(rows), 3)


def test_a_record_holds_the_genes_and_places_of_its_rows(tiny_corpus):
    view, vocab = tiny_corpus.token_view(), tiny_corpus.vocab
    for number, place in enumerate(view.places):
        truth, arrays = tiny_corpus.truth(place.slice_id), view.read(number)
        tokens = GeneTokens.of_record(arrays, with_levels=True)
        counts = vocab.count(truth.counts, truth.human_ids)[arrays[ROWS].astype(int)]
        expected = rank_value_encode(counts, vocab.medians, max_tokens=2048)
        assert tokens.tokens.tolist() == expected.tokens.tolist()
        assert tokens.levels.tolist() == expected.levels.tolist()
        assert (tokens.lengths.max(), len(tokens.lengths)) == (place.longest, place.n_cells)
        coords = truth.coords_um[arrays[ROWS].astype(int)]
        np.testing.assert_allclose(arrays[COORDS_UM], coords - coords.mean(axis=0), atol=1e-3)


def test_the_truth_has_the_rows_of_its_file(tiny_corpus, simulated_paths):
    table, truth = anndata.read_h5ad(simulated_paths[0]), tiny_corpus.truth("slice_0")
    assert truth.human_ids.tolist() == sorted(table.var_names)
    np.testing.assert_array_equal(truth.counts.toarray(), table[:, truth.human_ids].X.toarray())
    assert truth.labels["region"].tolist() == table.obs["region"].tolist()
