"""A loaded model reads its pair bias from a table: as near to the exact one as it says, gone where exactness is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import read_h5ad

from corpus.readers import read_slice
from corpus.slice import SliceSpec
from downstream.embedding import Embedder, embed, embed_slice, load_embedder
from downstream.self_test import MOST_CHANGE
from stofm.distance_bias import TABLE_ERROR


@pytest.fixture(scope="module")
def embedder(tiny_run) -> Embedder:
    return load_embedder(tiny_run / "model", device="cpu")


@pytest.fixture(scope="module")
def exact(tiny_run) -> Embedder:
    return load_embedder(tiny_run / "model", device="cpu", exact=True)


def test_embeddings_from_the_table_are_the_exact_ones_within_the_bound_of_the_self_test(embedder, exact, simulated_paths):
    one = read_slice(SliceSpec(path=str(simulated_paths[0])))
    found, expected = (embed_slice(one, which).cell_repr for which in (embedder, exact))
    difference = np.abs(found - expected).max()
    assert 0 < difference <= MOST_CHANGE


def test_the_error_of_the_table_is_stated_and_within_what_is_asked(embedder, exact):
    assert 0 < embedder.bias_error <= TABLE_ERROR
    assert embedder.model.se2_transformer.pair_bias.table.error == embedder.bias_error
    assert exact.bias_error == 0
    assert exact.model.se2_transformer.pair_bias.table is None


def test_what_a_table_cannot_reach_is_computed(tiny_run, monkeypatch):
    monkeypatch.setattr("stofm.distance_bias.MOST_KNOTS", 2)
    monkeypatch.setattr("stofm.distance_bias.FEWEST_KNOTS", 2)
    found = load_embedder(tiny_run / "model", device="cpu")
    assert found.bias_error == 0
    assert found.model.se2_transformer.pair_bias.table is None


def test_the_receipt_of_an_embedding_says_how_near_the_bias_was(embedder, exact, simulated_paths):
    receipts = [embed(read_h5ad(simulated_paths[0]), which, SliceSpec(path=str(simulated_paths[0]))).uns["stofm"] for which in (embedder, exact)]
    assert [receipt["pair_bias_error"] for receipt in receipts] == [embedder.bias_error, 0.0]
