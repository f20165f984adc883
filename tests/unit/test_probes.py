"""Probes: learn what is there, survive a round trip, keep their probabilities on the simplex."""

from pathlib import Path

import numpy as np
import pytest
from numpy.random import default_rng

from downstream.heads import most_probable
from downstream.probes import ProbeConfig, fit_probe, load_probe, save_probe
from downstream.scores import score_labels
from stofm.errors import DataError, FormatError

KINDS = ["linear", "mlp", "knn"]


def blobs(n_classes: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Classes around far corners; `shift` is what a slice adds to all its cells."""
    rng = default_rng(n_classes)
    labels = np.arange(90) % n_classes
    return rng.normal(size=(90, 5)) * 0.3 + np.eye(5)[labels] * 4 + shift, np.array([f"class_{label}" for label in labels])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_probe_carries_over_to_a_shifted_slice(kind: str, n_classes: int) -> None:
    probe = fit_probe([blobs(n_classes, 0.0)], ProbeConfig(kind=kind))  # type: ignore[arg-type]
    features, labels = blobs(n_classes, 100.0)
    proba = probe.predict_proba(features)
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-5)
    assert (most_probable(probe.classes, proba) == labels).mean() > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_probe_predicts_the_same(tmp_path: Path, kind: str) -> None:
    features, labels = blobs(3, 0.0)
    probe = fit_probe([(features, labels)], ProbeConfig(kind=kind))  # type: ignore[arg-type]
    save_probe(tmp_path / "head", probe, {"task": "region"})
    again, meta, _ = load_probe(tmp_path / "head")
    np.testing.assert_array_equal(again.predict_proba(features), probe.predict_proba(features))
    assert meta["task"] == "region"


def test_cells_without_features_get_no_label() -> None:
    features, labels = blobs(3, 0.0)
    probe = fit_probe([(features, labels)], ProbeConfig())
    features[4] = np.nan
    predicted = most_probable(probe.classes, probe.predict_proba(features))
    assert predicted[4] == ""
    assert (predicted[5:] != "").all()


def test_one_class_is_refused() -> None:
    features, _ = blobs(3, 0.0)
    with pytest.raises(DataError, match="found 1 classes"):
        fit_probe([(features, np.array(["only"] * len(features)))], ProbeConfig())


def test_a_damaged_head_is_refused(tmp_path: Path) -> None:
    (tmp_path / "head").write_bytes(b"no head")
    with pytest.raises(FormatError, match="Fit the head again"):
        load_probe(tmp_path / "head")


def test_cells_without_a_true_label_do_not_count() -> None:
    scores = score_labels(np.array(["a", "a", "b", ""]), np.array(["a", "b", "b", "a"]))
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.per_class["n_cells"].tolist() == [2, 1]
