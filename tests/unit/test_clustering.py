"""Clustering: planted groups are found, their number too, and names mean the same in every slice."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from downstream.clustering import ClusterConfig, cluster_slices, most_stable, score_clusters
from stofm.errors import DataError

METHODS = ["leiden", "kmeans", "gmm"]


def planted(seed: int, sizes: list[int], *, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Groups around far corners of 20 dimensions, and the group of each cell; `shift` is what a slice adds to all its cells."""
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return rng.normal(size=(len(groups), 20)) * 0.5 + np.eye(20)[groups] * 6 + shift, groups


@pytest.mark.parametrize("method", METHODS)
def test_planted_groups_are_found_in_slices_of_different_chemistry(method: str) -> None:
    (a, true_a), (b, true_b) = planted(0, [120, 80, 60, 40]), planted(1, [120, 80, 60, 40], shift=50.0)
    found = cluster_slices([a, b], ClusterConfig(method=method, n_clusters=4))  # type: ignore[arg-type]
    assert found.n_clusters == 4
    assert adjusted_rand_score(np.concatenate([true_a, true_b]), np.concatenate(found.labels)) > 0.98
    assert (found.labels[0][true_a == 0] == "cluster 1").mean() > 0.98  # the largest group has the first name, in both
    assert (found.labels[1][true_b == 0] == "cluster 1").mean() > 0.98


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_cells_and_slices_does_not_matter(method: str) -> None:
    (a, _), (b, _) = planted(0, [60, 50, 40]), planted(1, [60, 50, 40])
    order = np.random.default_rng(2).permutation(len(a))
    config = ClusterConfig(method=method, n_clusters=3)  # type: ignore[arg-type]
    first, second = cluster_slices([a, b], config), cluster_slices([b, a[order]], config)
    np.testing.assert_array_equal(first.labels[0][order], second.labels[1])
    np.testing.assert_array_equal(first.labels[1], second.labels[0])


@pytest.mark.parametrize("method", METHODS)
def test_turning_the_features_changes_no_cluster(method: str) -> None:
    features, _ = planted(3, [60, 50, 40])
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(20, 20)))[0]
    config = ClusterConfig(method=method, n_clusters=3)  # type: ignore[arg-type]
    a, b = (cluster_slices([one], config).labels[0] for one in (features, features @ turn))
    assert adjusted_rand_score(a, b) > 0.98


@pytest.mark.parametrize("method", ["kmeans", "leiden"])
def test_stability_tells_the_number_of_planted_groups(method: str) -> None:
    features, true = planted(4, [70, 70, 70, 70])
    found = cluster_slices([features], ClusterConfig(method=method, most=7, n_resamplings=3))  # type: ignore[arg-type]
    assert found.n_clusters == 4, found.stability
    assert adjusted_rand_score(true, found.labels[0]) > 0.98
    assert sorted(found.stability) == [2, 3, 4, 5, 6, 7]


def test_of_equally_stable_numbers_the_largest_is_taken() -> None:
    assert most_stable({2: (1.0, 0.0), 3: (1.0, 0.0), 4: (0.7, 0.1)}) == 3
    assert most_stable({2: (0.9, 0.05), 3: (0.86, 0.01), 4: (0.8, 0.3)}) == 3


def test_cells_without_features_get_no_cluster() -> None:
    features, _ = planted(5, [40, 40])
    features[3] = np.nan
    labels = cluster_slices([features], ClusterConfig(method="kmeans", n_clusters=2)).labels[0]
    assert labels[3] == ""
    assert (np.delete(labels, 3) != "").all()


def test_too_few_cells_are_named() -> None:
    with pytest.raises(DataError, match=r"found 6 cells with features; expected at least 20 for 10 clusters"):
        cluster_slices([np.random.default_rng(0).normal(size=(6, 5))], ClusterConfig(n_clusters=10))


def test_cells_without_a_true_label_do_not_count() -> None:
    scores = score_clusters(np.array(["a", "a", "b", "b", ""]), np.array(["1", "1", "2", "2", "1"]))
    assert scores == {"ari": pytest.approx(1.0), "nmi": pytest.approx(1.0)}
    assert np.isnan(score_clusters(np.array([""]), np.array(["1"]))["ari"])
