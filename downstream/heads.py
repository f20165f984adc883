"""Heads for regions and cell types: fitted on labelled, embedded slices; predictions with probabilities go into `obs`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from corpus.qc import obs_unit_of
from corpus.readers.table import find_coordinates, find_labels, provenance_of
from corpus.slice import FloatArray, IntArray, StrArray
from downstream.calibration import Calibration
from downstream.embedding import Embedder, require_embedded
from downstream.finetune import FinetuneConfig, fine_tune, tuned_features
from downstream.held_out import folds_of_groups, judge_by_held_out
from downstream.novelty import Novelty
from downstream.probes import Probe, ProbeConfig, fit_probe, groups_of, held_cells, load_probe, save_probe
from downstream.splits import blocks_of
from stofm.config import FrozenModel
from stofm.durable import MARKER, claim_folder, read_json, require_folder
from stofm.errors import DataError, located
from stofm.fields import UNS_STOFM

if TYPE_CHECKING:
    from anndata import AnnData

HEAD_KIND, OLD_HEAD_KIND = "stofm-head/2", "stofm-head/1"
HEAD_FILE = "head.safetensors"
N_BLOCKS = 20  # of a slice, for calibration and early stopping

Task = Literal["region", "cell_type"]
COMMAND: dict[Task, str] = {"region": "segment", "cell_type": "annotate"}
LOCALITIES: dict[Task, tuple[float, ...]] = {"region": (0.0, -1.0), "cell_type": (0.0, 1.0)}  # regions are smooth; neighbours differ in type


class HeadConfig(FrozenModel):
    """How a head is fitted."""

    probe: ProbeConfig = Field(default_factory=ProbeConfig)
    calibration_folds: int = Field(3, ge=0, description="Fits that leave blocks (or whole slices, from three on) out, for calibration; 0: none.")
    finetune: FinetuneConfig | None = Field(None, description="Train layers of the transformer too; default: its embeddings stay as they are.")


@dataclass(frozen=True, eq=False)
class Head:
    """A probe, the task it was fitted for, the obs column it learned from, and the model whose embeddings it reads.

    Attributes
    ----------
    calibration, novelty : None for heads that were fitted without
    shares : (C,) float32
        Of each class among the labelled cells; empty in heads of format 1.
    places : str
        What the labelled places are: cell, spot, bead, or several with "+"; "" where not known.
    delta : {parameter of the SE(2) transformer: array}
        What fine-tuning adds to the model's weights; empty without it.
    """

    task: Task
    label: str
    weights_sha256: str
    probe: Probe
    calibration: Calibration | None = None
    novelty: Novelty | None = None
    shares: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))
    places: str = ""
    delta: Mapping[str, FloatArray] = field(default_factory=dict)


def fit_head(slices: dict[str, AnnData], task: Task, *, label: str, config: HeadConfig | None = None, embedder: Embedder | None = None) -> Head:
    """Fit a head to embedded slices by name.

    Parameters
    ----------
    embedder : Embedder, optional
        The model that embedded the slices; `config.finetune` needs it.

    Raises
    ------
    DataError
        If a slice is not embedded, or by another model, or has no such label; if fewer than two classes are labelled.
    """
    config = config or HeadConfig()
    weights: str | None = None
    examples, blocks = [], []
    for name, table in slices.items():
        features = require_embedded(table, name, weights_sha256=weights)
        weights = str(table.uns[UNS_STOFM]["weights_sha256"])
        with located(f"slice {name!r}"):
            examples.append((features, find_labels(table, {task: label})[task]))
        blocks.append(_blocks(table))
    assert weights is not None, "the command line takes one slice or more"
    delta: Mapping[str, FloatArray] = {}
    groups = groups_of(blocks)
    folds = folds_of_groups(groups, config.calibration_folds, seed=config.probe.seed)
    if config.finetune is not None:
        held = held_cells(groups, seed=config.finetune.seed)
        delta, examples = fine_tune(slices, examples, held, embedder, config.finetune, weights_sha256=weights)
        folds = [held] if folds else []  # the transformer has learned from all others
    probe = fit_probe(examples, config.probe, blocks, localities=LOCALITIES[task])
    calibration, novelty = judge_by_held_out(probe, examples, blocks, folds)
    labels = np.concatenate([labels for _, labels in examples])
    counts = np.bincount(np.searchsorted(probe.classes, labels[np.isin(labels, probe.classes)]), minlength=len(probe.classes))
    places = "+".join(sorted({places_of(table) for table in slices.values()}))
    return Head(task, label, weights, probe, calibration, novelty, (counts / counts.sum()).astype(np.float32), places, delta)


def head_features(head: Head, table: AnnData, name: str, embedder: Embedder | None) -> FloatArray:
    """Return what the head reads of an embedded slice, (n_cells, 256).

    Raises
    ------
    DataError
        If the slice is not embedded, or by another model, or its places are spots where a cell type head knows cells.
    """
    features = require_embedded(table, name, weights_sha256=head.weights_sha256)
    places = places_of(table)
    if head.task == "cell_type" and head.places and places not in head.places.split("+"):
        raise DataError(
            f"slice {name!r}: its places are {places}s; expected {head.places.replace('+', 's or ')}s, which the head was fitted on. A {places} "
            "holds other numbers of cells: fit a head on such slices, or ask for proportions with `stofm deconvolve`."
        )
    return tuned_features(table, name, head.delta, embedder, weights_sha256=head.weights_sha256) if head.delta else features


def places_of(table: AnnData) -> str:
    """Return what a place of a table is, as its file states it: cell, spot or bead."""
    provenance = provenance_of(table.uns)
    return str(provenance.get("obs_unit", obs_unit_of(str(provenance.get("technology", "")))))


def spatial_key_of(table: AnnData) -> str:
    """Return the obsm key of the coordinates that an embedded table was read by."""
    return str(json.loads(table.uns[UNS_STOFM]["slice"])["spatial_key"])


def _blocks(table: AnnData) -> IntArray:
    """Number the blocks of a slice's tissue, (n_cells,) int64; cells without a place go with those at the origin."""
    coords = np.nan_to_num(find_coordinates(table, spatial_key_of(table)))
    return blocks_of(coords, np.arange(table.n_obs, dtype=np.uint64), N_BLOCKS)


def most_probable(classes: StrArray, proba: np.ndarray) -> StrArray:
    """Return the class of highest probability per row, "" for rows of NaN."""
    is_known = np.isfinite(proba).all(axis=1)
    return np.where(is_known, classes[np.where(is_known[:, None], proba, 0).argmax(axis=1)], "")


def save_head(folder: Path, head: Head) -> None:
    """Write a head to a folder of its own."""
    claim_folder(folder, HEAD_KIND)
    meta = {"task": head.task, "label": head.label, "weights_sha256": head.weights_sha256, "places": head.places}
    beside = {"shares": head.shares, **{f"delta.{name}": values for name, values in head.delta.items()}}
    if head.calibration is not None:
        meta |= {"temperature": repr(head.calibration.temperature), "n_held_out": str(head.calibration.n_cells)}
        beside |= {"calibration.quantiles": head.calibration.quantiles}
    if head.novelty is not None:
        beside |= {f"novelty.{name}": getattr(head.novelty, name) for name in ("means", "whitener", "quantiles")}
    save_probe(folder / HEAD_FILE, head.probe, meta, {name: np.ascontiguousarray(values) for name, values in beside.items()})


def load_head(folder: Path, task: Task) -> Head:
    """Read a head, also one of format 1; `DataError` if it was fitted for another task."""
    is_old = (folder / MARKER).is_file() and read_json(folder / MARKER).get("kind") == OLD_HEAD_KIND
    require_folder(folder, OLD_HEAD_KIND if is_old else HEAD_KIND, made_by=f"stofm {COMMAND[task]} fit")
    probe, meta, arrays = load_probe(folder / HEAD_FILE)
    if meta["task"] != task:
        raise DataError(f"head {folder}: found a head for {meta['task']!r}; expected one for {task!r}. Fit it with `stofm {COMMAND[task]} fit`.")
    if is_old:
        return Head(task, meta["label"], meta["weights_sha256"], probe)
    calibration = novelty = None
    if "temperature" in meta:
        calibration = Calibration(float(meta["temperature"]), arrays["calibration.quantiles"], int(meta["n_held_out"]))
    if "novelty.means" in arrays:
        novelty = Novelty(arrays["novelty.means"], arrays["novelty.whitener"], arrays["novelty.quantiles"])
    delta = {name.removeprefix("delta."): values for name, values in arrays.items() if name.startswith("delta.")}
    return Head(task, meta["label"], meta["weights_sha256"], probe, calibration, novelty, arrays["shares"], meta["places"], delta)
