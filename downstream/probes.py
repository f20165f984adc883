"""Probes: small classifiers on frozen features, saved as plain arrays.

What is kept of a fit is a chain of affine maps, so that a head is a safetensors file and no pickle.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.special import softmax

from corpus.slice import BoolArray, FloatArray, IntArray, StrArray
from downstream.linear_probe import fit_linear
from downstream.locality import choose_locality, feature_scale, local_share
from stofm.config import FrozenModel
from stofm.durable import replacing
from stofm.errors import DataError, FormatError

PROBE_FORMAT = "stofm-probe/1"
HELD_SHARE = 0.1  # of the groups, for early stopping
N_SLICES_TO_HOLD_OUT = 3  # from so many on, whole slices are held out instead of blocks
FAR_APART = 1_000_000  # numbers of blocks of two slices


class ProbeConfig(FrozenModel):
    """What kind of probe, and how it is fitted."""

    kind: Literal["linear", "mlp", "knn"] = "linear"
    hidden: int = Field(128, ge=1, description="Width of the hidden layer (mlp).")
    locality: float | None = Field(
        None, description="Below 0, features that are smooth over the tissue count more; above, those in which neighbours differ. Default: chosen."
    )
    l2: float = Field(1e-2, gt=0, description="Penalty on the weights (linear: of the mean loss; mlp: weight decay).")
    n_neighbors: int = Field(15, ge=1, description="Neighbours that vote (knn).")
    balanced: bool = Field(True, description="Every class weighs the same, however rare.")
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Probe:
    """A fitted probe.

    Attributes
    ----------
    config : ProbeConfig
        With the locality that was chosen.
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
        x = self.scaled(features)
        is_known = np.isfinite(x).all(axis=1)
        proba = np.full((len(x), len(self.classes)), np.nan, np.float32)
        proba[is_known] = self._vote(x[is_known]) if self.config.kind == "knn" else self._scores(x[is_known])
        return proba

    def scaled(self, features: FloatArray) -> FloatArray:
        """Return the features of one slice as the probe reads them, (n, F)."""
        return centre_slice(features) / self.scale

    def _scores(self, x: FloatArray) -> FloatArray:
        for weights, bias in self.layers[:-1]:
            x = np.maximum(x @ weights + bias, 0)
        proba: FloatArray = softmax(x @ self.layers[-1][0] + self.layers[-1][1], axis=1)
        return proba

    def _vote(self, x: FloatArray) -> FloatArray:
        import faiss

        index = faiss.IndexFlatL2(self.examples.shape[1])
        index.add(np.ascontiguousarray(self.examples, np.float32))
        _, nearest = index.search(np.ascontiguousarray(x, np.float32), min(self.config.n_neighbors, len(self.examples)))
        weights = 1 / np.bincount(self.example_classes, minlength=len(self.classes)) if self.config.balanced else np.ones(len(self.classes))
        votes = np.zeros((len(x), len(self.classes)))
        np.add.at(votes, (np.arange(len(x))[:, None], self.example_classes[nearest]), weights[self.example_classes[nearest]])
        return votes / votes.sum(axis=1, keepdims=True)


def fit_probe(
    slices: Sequence[tuple[FloatArray, StrArray]],
    config: ProbeConfig,
    blocks: Sequence[IntArray] | None = None,
    *,
    localities: Sequence[float] = (0.0,),
) -> Probe:
    """Fit a probe to labelled slices.

    Parameters
    ----------
    slices : of (features (n, F), labels (n,) str)
        Cells without a label ("") or with NaN features are left out, after centring.
    blocks : of (n,) int, optional
        Block of tissue of each cell, numbered within its slice. They tell which features are smooth, and what is held out to choose a locality
        and to stop the mlp early (`groups_of`); without them no locality is chosen, and the mlp holds out single cells.
    localities : what to choose from where `config` names none

    Raises
    ------
    DataError
        If fewer than two classes are labelled.
    """
    of_slices = [centre_slice(features) for features, _ in slices]
    labels = np.concatenate([labels for _, labels in slices])
    centred = np.vstack(of_slices)
    is_used = (labels != "") & np.isfinite(centred).all(axis=1)
    classes, y = np.unique(labels[is_used], return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"labels: found {len(classes)} classes {classes.tolist()} among {int(is_used.sum())} labelled cells; expected two or more. "
                        "Name another column, or add labelled slices.")  # fmt: skip
    x, groups, share = centred[is_used], np.arange(len(y)), np.ones(centred.shape[1])
    if blocks is not None:
        groups = np.concatenate(groups_of(blocks))[is_used]
        share = np.mean([local_share(*one) for one in zip(of_slices, blocks, strict=True)], axis=0)
    locality = config.locality
    if locality is None:
        asked = localities if blocks is not None else (0.0,)
        locality = choose_locality(x, y, groups, share, asked, l2=config.l2, balanced=config.balanced, seed=config.seed)
    scale = feature_scale(x, share, locality)
    x = (x / scale).astype(np.float32)
    layers: tuple[tuple[FloatArray, FloatArray], ...] = ()
    if config.kind != "knn":
        layers = tuple((weights.astype(np.float32), bias.astype(np.float32)) for weights, bias in _FIT[config.kind](x, y, groups, config))
    is_kept = slice(None) if config.kind == "knn" else slice(0)
    return Probe(config.model_copy(update={"locality": locality}), classes, scale, layers, x[is_kept], y[is_kept])


def groups_of(blocks: Sequence[IntArray]) -> list[IntArray]:
    """Number what is held out together, (n,) of every slice: its blocks, or the whole slice from three slices on."""
    if len(blocks) >= N_SLICES_TO_HOLD_OUT:
        return [np.full(len(of_slice), number) for number, of_slice in enumerate(blocks)]
    return [FAR_APART * number + of_slice for number, of_slice in enumerate(blocks)]


def _fit_linear(x: FloatArray, y: IntArray, groups: IntArray, config: ProbeConfig) -> list[tuple[FloatArray, FloatArray]]:
    return fit_linear(x, y, l2=config.l2, balanced=config.balanced)


def _fit_mlp(x: FloatArray, y: IntArray, groups: IntArray, config: ProbeConfig) -> list[tuple[FloatArray, FloatArray]]:
    from downstream.mlp_probe import fit_mlp

    sizes = np.bincount(y)
    weights = len(y) / (len(sizes) * sizes) if config.balanced else np.ones(len(sizes))
    return fit_mlp(x, y, held_cells([groups], seed=config.seed)[0], hidden=config.hidden, l2=config.l2, class_weights=weights, seed=config.seed)


def held_cells(groups: Sequence[IntArray], *, seed: int) -> list[BoolArray]:
    """Tell which cells of each slice, (n,), belong to the tenth of the groups, one at least, that is held out."""
    names = np.unique(np.concatenate(list(groups)))
    chosen = np.random.default_rng(seed).permutation(names)[: max(1, round(HELD_SHARE * len(names)))]
    return [np.isin(of_slice, chosen) for of_slice in groups]


_FIT = {"linear": _fit_linear, "mlp": _fit_mlp}


def centre_slice(features: FloatArray) -> FloatArray:
    """Subtract the mean of a slice, so that what all its cells share (donor, chemistry, panel) does not count."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nothing embedded: all NaN in, all NaN out
        mean = np.nanmean(features, axis=0, dtype=np.float64)
    return np.subtract(features, mean, dtype=np.float32, casting="same_kind")


def save_probe(path: Path, probe: Probe, meta: dict[str, str], beside: Mapping[str, np.ndarray] | None = None) -> None:
    """Write a probe, what it belongs to and further arrays as one safetensors file, whole or not at all."""
    arrays = {
        **(beside or {}),
        "scale": probe.scale,
        "examples": probe.examples.astype(np.float32),
        "example_classes": probe.example_classes.astype(np.int64),
    }
    for number, (weights, bias) in enumerate(probe.layers):
        arrays |= {f"layers.{number}.weights": np.ascontiguousarray(weights), f"layers.{number}.bias": bias}
    header = {"format": PROBE_FORMAT, "config": probe.config.model_dump_json(), "classes": json.dumps(probe.classes.tolist()), **meta}
    with replacing(path) as aside:
        save_file(arrays, aside, metadata=header)


def load_probe(path: Path) -> tuple[Probe, dict[str, str], dict[str, np.ndarray]]:
    """Read what `save_probe` wrote: the probe, what it belongs to, and all arrays of the file."""
    try:
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise FormatError(f"head {path}: {error}; expected a file that `fit` wrote. Fit the head again.") from error
    if header.get("format") != PROBE_FORMAT:
        raise FormatError(f"head {path}: found format {header.get('format')!r}; expected {PROBE_FORMAT!r}. Fit the head again.")
    n_layers = sum(name.startswith("layers.") and name.endswith(".bias") for name in arrays)
    layers = tuple((arrays[f"layers.{number}.weights"], arrays[f"layers.{number}.bias"]) for number in range(n_layers))
    config = ProbeConfig.model_validate_json(header["config"])
    probe = Probe(config, np.array(json.loads(header["classes"])), arrays["scale"], layers, arrays["examples"], arrays["example_classes"])
    return probe, header, arrays
