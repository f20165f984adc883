"""`stofm seen`: files that were turned, renamed, normalised or stripped, asked about on the command line."""

from __future__ import annotations

import json
import shutil

import anndata
import numpy as np
import pytest
from cli import contents, refused, succeed
from scipy.sparse import csr_matrix
from synth import turned

from corpus.copies import corpus_sketches
from corpus.simulate import SimulationConfig, simulate_slice
from corpus.sketch import sketch_path, sketch_slice, write_sketch
from corpus.store import Corpus


def turn(table):
    table.obsm["spatial"] = turned(table.obsm["spatial"], 37.0) * 4.7 + 1000.0
    table.uns["provenance"]["unit"] = "pixel"
    return table[::-1].copy()


def crop(table):
    return table[table.obsm["spatial"][:, 0] > np.median(table.obsm["spatial"][:, 0])].copy()


def normalise(table):
    counts = table.X.toarray()
    table.X = csr_matrix(np.log1p(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * 1e4))
    return table


def strip(table):
    return anndata.AnnData(table.X[:, ::2], var=table.var[::2], obs=table.obs[[]])


DEEDS = {"turned and in pixels": turn, "cropped": crop, "log-normalised": normalise, "half the genes, no places": strip}


def answer_of(path, corpus) -> dict:
    return json.loads(succeed("seen", path, "--corpus", corpus.folder, "--json"))


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("number", [0, 1], ids=["human", "mouse"])
def test_a_changed_file_is_known_again(simulated_paths, tiny_corpus, tmp_path, deed, number):
    DEEDS[deed](anndata.read_h5ad(simulated_paths[number])).write_h5ad(tmp_path / "renamed.h5ad")
    answer = answer_of(tmp_path / "renamed.h5ad", tiny_corpus)
    assert (answer["slice"], answer["verdict"], answer["corpus_id"]) == ("renamed", "seen", tiny_corpus.corpus_id)
    first = answer["matches"][0]
    assert (first["slice_id"], first["verdict"], first["containment"]) == (f"slice_{number}", "seen", 1.0)
    assert first["n_shared"] == first["n_query"] == answer["n_sets"]


def test_a_slice_of_the_same_world_that_is_not_in_the_corpus_was_not_seen(tiny_corpus, tmp_path):
    simulate_slice(SimulationConfig(n_slices=9, n_cells=400, panel_sizes=[60, 90]), 8).write_h5ad(tmp_path / "new.h5ad")
    before = contents(tiny_corpus.folder)
    text = succeed("seen", tmp_path / "new.h5ad", "--corpus", tiny_corpus.folder)
    assert text.startswith("new: not seen: no slice of the corpus holds its cells\n  400 cells with ")
    assert contents(tiny_corpus.folder) == before


def test_the_evidence_is_said_in_words(simulated_paths, tiny_corpus):
    text = succeed("seen", simulated_paths[0], "--corpus", tiny_corpus.folder)
    assert text.startswith("slice_0: seen: its cells are in the corpus, or it holds a slice of the corpus\n")
    assert "slice_0: seen: 400 sets in common, 400 here and 400 there (100.0%; at most 0.0% without a common cell), on 60 genes" in text


def test_sketches_are_read_where_the_corpus_has_them(tiny_corpus, tmp_path):
    shutil.copytree(tiny_corpus.folder, tmp_path / "corpus")
    kept = sketch_slice("slice_1", tiny_corpus.truth("slice_1").counts[:7], tiny_corpus.truth("slice_1").human_ids)
    write_sketch(sketch_path(tmp_path / "corpus", "slice_1"), kept)
    found = {one.slice_id: one.n_cells for one in corpus_sketches(Corpus(tmp_path / "corpus"))}
    assert found == {"slice_0": 400, "slice_1": 7, "slice_2": 400}


def test_a_slice_that_is_too_small_cannot_be_told(simulated_paths, tiny_corpus, tmp_path):
    anndata.read_h5ad(simulated_paths[0])[:6].copy().write_h5ad(tmp_path / "six.h5ad")
    assert answer_of(tmp_path / "six.h5ad", tiny_corpus)["verdict"] == "cannot tell"


def test_scaled_values_are_refused_for_they_hide_what_was_detected(simulated_paths, tiny_corpus, tmp_path):
    table = anndata.read_h5ad(simulated_paths[0])
    dense = table.X.toarray()
    table.X = dense - dense.mean(axis=0)
    table.write_h5ad(tmp_path / "scaled.h5ad")
    assert "expected raw molecule counts" in refused("seen", tmp_path / "scaled.h5ad", "--corpus", tiny_corpus.folder)


def test_a_folder_that_is_no_corpus_is_refused(simulated_paths, tmp_path):
    assert "expected one of kind 'stofm-corpus/1'" in refused("seen", simulated_paths[0], "--corpus", tmp_path)
