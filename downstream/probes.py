"""Probes: small classifiers on frozen features, saved as plain arrays.

scikit-learn fits them; what is kept is a chain of affine maps, so that a head is a safetensors file and no pickle.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from corpus.slice import FloatArray, IntArray, StrArray
from stofm.config import FrozenModel
from stofm.durable import replacing
from stofm.errors import DataError, FormatError

PROBE_FORMAT = "stofm-probe/1"


class ProbeConfig(FrozenModel):
    """What kind of probe, and how it is fitted."""

    kind: Literal["linear", "mlp", "knn"] = "linear"
    hidden: int = Field(128, ge=1, description="Width of the hidden layer (mlp).")
    l2: float = Field(1e-2, gt=0, description="Penalty on the weights (linear: of the mean loss; mlp: alpha).")
    n_neighbors: int = Field(15, ge=1, description="Neighbours that vote (knn).")
    balanced: bool = Field(True, description="Every class weighs the same, however rare.")
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Probe:
    """A fitted probe.

    Attributes
    ----------
    classes : (C,) str
    scale : (F,) float32
        Features are centred slice by slice and divided by this.
    layers : tuple of (weights (in, out), bias (out,)) float32
        Affine maps with ReLU between them; the last gives one score per class. Empty for kNN.
    examples, example_classes : (M, F) float32, (M,) int64
        What kNN votes with; empty else.
    """

    config: ProbeConfig
    classes: StrArray
    scale: FloatArray
    layers: tuple[tuple[FloatArray, FloatArray], ...]
    examples: FloatArray
    example_classes: IntArray

    def predict_proba(self, features: FloatArray) -> FloatArray:
        """Return (n, C) float32 probabilities for the cells of *one* slice, (n, F); NaN rows give NaN."""
        x = centre_slice(features) / self.scale
        is_known = np.isfinite(x).all(axis=1)
        proba = np.full((len(x), len(self.classes)), np.nan, np.float32)
        proba[is_known] = self._vote(x[is_known]) if self.config.kind == "knn" else self._scores(x[is_known])
        return proba

    def _scores(self, x: FloatArray) -> FloatArray:
        for weights, bias in self.layers[:-1]:
            x = np.maximum(x @ weights + bias, 0)
        scores = x @ self.layers[-1][0] + self.layers[-1][1]
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def _vote(self, x: FloatArray) -> FloatArray:
        import faiss

        index = faiss.IndexFlatL2(self.examples.shape[1])
        index.add(np.ascontiguousarray(self.examples, np.float32))
        _, nearest = index.search(np.ascontiguousarray(x, np.float32), min(self.config.n_neighbors, len(self.examples)))
        weights = 1 / np.bincount(self.example_classes, minlength=len(self.classes)) if self.config.balanced else np.ones(len(self.classes))
        votes = np.zeros((len(x), len(self.classes)))
        np.add.at(votes, (np.arange(len(x))[:, None], self.example_classes[nearest]), weights[self.example_classes[nearest]])
        return votes / votes.sum(axis=1, keepdims=True)


def fit_probe(slices: list[tuple[FloatArray, StrArray]], config: ProbeConfig) -> Probe:
    """Fit a probe to labelled slices.

    Parameters
    ----------
    slices : list of (features (n, F), labels (n,) str)
        Cells without a label ("") or with NaN features are left out, after centring.

    Raises
    ------
    DataError
        If fewer than two classes are labelled.
    """
    centred = np.vstack([centre_slice(features) for features, _ in slices])
    labels = np.concatenate([labels for _, labels in slices])
    is_used = (labels != "") & np.isfinite(centred).all(axis=1)
    classes, y = np.unique(labels[is_used], return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"labels: found {len(classes)} classes {classes.tolist()} among {int(is_used.sum())} labelled cells; expected two or more.")
    x = centred[is_used]
    scale = np.maximum(x.std(axis=0), 1e-6).astype(np.float32)
    x = (x / scale).astype(np.float32)
    layers: tuple[tuple[FloatArray, FloatArray], ...] = ()
    if config.kind != "knn":
        layers = tuple(_both_classes(w.astype(np.float32), b.astype(np.float32)) for w, b in _FIT[config.kind](x, y, config))
    is_kept = slice(None) if config.kind == "knn" else slice(0)
    return Probe(config, classes, scale, layers, x[is_kept], y[is_kept])


def _fit_linear(x: FloatArray, y: IntArray, config: ProbeConfig) -> list[tuple[FloatArray, FloatArray]]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1 / (config.l2 * len(x)), max_iter=2000, class_weight="balanced" if config.balanced else None).fit(x, y)
    return [(model.coef_.T, model.intercept_)]


def _fit_mlp(x: FloatArray, y: IntArray, config: ProbeConfig) -> list[tuple[FloatArray, FloatArray]]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from sklearn.utils.class_weight import compute_sample_weight

    model = MLPClassifier((config.hidden,), alpha=config.l2, batch_size=min(256, len(x)), max_iter=60, random_state=config.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of passes is the regularisation
        model.fit(x, y, sample_weight=compute_sample_weight("balanced" if config.balanced else None, y))
    return list(zip(model.coefs_, model.intercepts_, strict=True))


_FIT = {"linear": _fit_linear, "mlp": _fit_mlp}


def _both_classes(weights: FloatArray, bias: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Give two classes two scores where scikit-learn keeps only that of the second."""
    if len(bias) > 1:
        return weights, bias
    return np.hstack([np.zeros_like(weights), weights]), np.concatenate([np.zeros_like(bias), bias])


def centre_slice(features: FloatArray) -> FloatArray:
    """Subtract the mean of a slice, so that what all its cells share (donor, chemistry, panel) does not count."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nothing embedded: all NaN in, all NaN out
        return features - np.nanmean(features, axis=0, dtype=np.float64)


def save_probe(path: Path, probe: Probe, meta: dict[str, str]) -> None:
    """Write a probe and what it belongs to as one safetensors file, whole or not at all."""
    arrays = {"scale": probe.scale, "examples": probe.examples.astype(np.float32), "example_classes": probe.example_classes.astype(np.int64)}
    for number, (weights, bias) in enumerate(probe.layers):
        arrays |= {f"layers.{number}.weights": np.ascontiguousarray(weights), f"layers.{number}.bias": bias}
    header = {"format": PROBE_FORMAT, "config": probe.config.model_dump_json(), "classes": json.dumps(probe.classes.tolist()), **meta}
    with replacing(path) as aside:
        save_file(arrays, aside, metadata=header)


def load_probe(path: Path) -> tuple[Probe, dict[str, str]]:
    """Read what `save_probe` wrote: the probe, and what it belongs to."""
    try:
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise FormatError(f"head {path}: {error}; expected a file that `fit` wrote. Fit the head again.") from error
    if header.get("format") != PROBE_FORMAT:
        raise FormatError(f"head {path}: found format {header.get('format')!r}; expected {PROBE_FORMAT!r}. Fit the head again.")
    n_layers = sum(name.endswith(".bias") for name in arrays)
    layers = tuple((arrays[f"layers.{number}.weights"], arrays[f"layers.{number}.bias"]) for number in range(n_layers))
    config = ProbeConfig.model_validate_json(header["config"])
    return Probe(config, np.array(json.loads(header["classes"])), arrays["scale"], layers, arrays["examples"], arrays["example_classes"]), header
