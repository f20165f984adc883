"""Peers: what is not installed or fails is a remark in the table, and their slices come back in order."""

from __future__ import annotations

import numpy as np
import pytest
from test_evaluation_splits import SLICES

from downstream import peers
from downstream.peers import peer_features


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scvi", None)
    made = peer_features("scVI", seed=0)(SLICES, [0])
    assert made.missing.startswith("not installed (")
    assert not made.of_slices


def test_a_peer_that_fails_says_how(monkeypatch):
    def fail(table, seed):
        raise RuntimeError("no\nspace")

    monkeypatch.setitem(peers._PEERS, "BANKSY", fail)
    assert peer_features("BANKSY", seed=0)(SLICES, [0]).missing == "failed: RuntimeError: no space"


def test_every_slice_gets_its_own_rows(monkeypatch):
    monkeypatch.setitem(peers._PEERS, "Novae", lambda table, seed: np.asarray(table.obs["slice"].cat.codes)[:, None] + [0.0, seed])
    made = peer_features("Novae", seed=7)(SLICES, [0])
    for number, (one, features) in enumerate(zip(SLICES, made.of_slices, strict=True)):
        assert features.shape == (one.n_cells, 2)
        np.testing.assert_array_equal(features, np.full((one.n_cells, 2), [number, number + 7]))


@pytest.mark.parametrize("first", [0, 1])
def test_slices_lie_apart(first):
    places = peers._joined(SLICES).obsm["spatial"]
    parts = np.split(places[:, 0], np.cumsum([one.n_cells for one in SLICES])[:-1])
    assert parts[first + 1].min() - parts[first].max() > 1000
