"""What is said of a labelled tissue beside its map."""

from __future__ import annotations

import numpy as np
import pytest

from downstream.diagnostics import clusters, composition, confusion, neighbor_enrichment, reliability, umap_places

RNG = np.random.default_rng(0)


def test_shares_of_a_group_add_up_to_one_and_unlabelled_cells_do_not_count():
    groups, parts = np.array(["a", "a", "b", "", "b"]), np.array(["x", "y", "x", "x", ""])
    shares = composition(groups, parts)
    assert shares.sum(axis=1).tolist() == [1, 1]
    assert shares.loc["b"].tolist() == [1, 0]


def test_the_confusion_counts_every_labelled_cell_once_and_names_those_without_a_prediction():
    true, predicted = np.array(["a", "a", "b", "", "b"]), np.array(["a", "b", "", "a", "c"])
    table = confusion(true, predicted)
    assert table.to_numpy().sum() == 4
    assert table.index.tolist() == ["a", "b"]
    assert set(table.columns) == {"a", "b", "c", "(none)"}
    assert table.loc["b", "(none)"] == 1


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_the_calibration_error_is_the_distance_of_confidence_and_accuracy(shift):
    confidence = RNG.uniform(0.2, 0.75, 40_000)
    true = np.where(RNG.random(40_000) < confidence, "a", "b")
    found = reliability(true, np.full(40_000, "a"), confidence + shift)
    assert found.error == pytest.approx(shift, abs=0.02)
    assert found.bins["n_cells"].sum() == 40_000


def test_without_true_labels_there_is_no_calibration():
    assert reliability(np.array(["", ""]), np.array(["a", "a"]), np.array([0.5, 0.6])) is None


def test_clusters_are_numbered_by_size_and_cells_without_embedding_have_none():
    centres = np.repeat([[0.0, 0], [50, 0], [0, 50]], [300, 100, 200], axis=0)
    features = np.vstack([centres + RNG.normal(size=centres.shape), [[np.nan, 0]]])
    labels = clusters(features, n_clusters=3)
    assert labels[-1] == ""
    assert [(labels == name).sum() for name in "123"] == [300, 200, 100]


def test_classes_that_keep_apart_are_enriched_beside_themselves():
    coords_um = RNG.uniform(0, 100, (400, 2))
    labels = np.where(coords_um[:, 0] < 50, "left", "right")
    labels[:5] = ""
    scores = neighbor_enrichment(coords_um, labels, n_perms=20)
    assert scores.index.tolist() == ["left", "right"]
    assert scores.loc["left", "left"] > 3
    assert scores.loc["left", "right"] < -3


def test_umap_keeps_groups_apart_and_leaves_out_cells_without_embedding():
    group = np.repeat([0, 1], 60)
    features = np.random.default_rng(0).normal(size=(120, 8)) + 20.0 * group[:, None]
    features[[3, 70]] = np.nan
    rows, places = umap_places(features, n_cells=100)
    assert len(np.unique(rows)) == len(places) == 100
    assert not {3, 70} & set(rows.tolist())
    centres = np.stack([places[group[rows] == one].mean(axis=0) for one in (0, 1)])
    nearest = np.linalg.norm(places[:, None] - centres, axis=-1).argmin(axis=1)
    np.testing.assert_array_equal(nearest, group[rows])
