"""`stofm segment` and `stofm annotate`, each with `fit` and `predict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from corpus.readers import read_table, slice_name
from corpus.readers.table import find_coordinates, find_labels
from downstream.embedding import Embedder, load_embedder, write_table
from downstream.heads import HEAD_FILE, HEAD_KIND, HeadConfig, Task, fit_head, load_head, save_head, spatial_key_of
from downstream.plots import plot_tissue
from downstream.predict import PredictConfig, predict_head
from downstream.scores import LabelScores
from stofm.config import parse_config
from stofm.durable import check_folder, claim_folder, write_text
from stofm.errors import ConfigError
from tools.console import say, tracking
from tools.specs import slice_specs

PREDICTIONS_KIND = "stofm-predictions/1"
_HEARD = {-1: "what is smooth over the tissue counts more", 0: "all features count alike", 1: "what differs between neighbours counts more"}


def run_fit(
    paths: Sequence[Path], out: Path, *, task: Task, label: str, kind: str, depth: str = "last", model: Path | None = None, overwrite: bool = False
) -> None:
    """Fit a head on embedded, labelled slices."""
    check_folder(out, HEAD_KIND)
    _require_absent(out / HEAD_FILE, overwrite)
    settings = {"probe": {}, "finetune": {"depth": depth}} if kind == "finetune" else {"probe": {"kind": kind}}
    config = parse_config(HeadConfig, settings, where="options")
    embedder = _embedder(model)
    slices = {slice_name(spec): read_table(spec) for spec in slice_specs(paths)}
    with tracking(f"fitting a {kind} head on {len(slices)} slices"):
        head = fit_head(slices, task, label=label, config=config, embedder=embedder)
        save_head(out, head)
    say(f"head: {out} ({len(head.probe.classes)} classes: {', '.join(head.probe.classes)})")
    say(f"locality: {head.probe.config.locality:g} ({_HEARD[np.sign(head.probe.config.locality or 0)]})")
    if head.calibration is not None:
        say(f"calibrated on {head.calibration.n_cells} held-out cells: temperature {head.calibration.temperature:.2f}")


def run_predict(
    paths: Sequence[Path],
    head_folder: Path,
    out: Path,
    *,
    task: Task,
    options: Mapping[str, object] | None = None,
    model: Path | None = None,
    overwrite: bool = False,
) -> list[LabelScores | None]:
    """Predict the labels of embedded slices; returns the scores of those that have true ones."""
    check_folder(out, PREDICTIONS_KIND)
    config = parse_config(PredictConfig, options or {}, where="options")
    head, embedder, specs = load_head(head_folder, task), _embedder(model), slice_specs(paths)
    for spec in specs:
        _require_absent(out / f"{slice_name(spec)}.h5ad", overwrite)
    all_scores = []
    for spec in specs:
        name, table = slice_name(spec), read_table(spec)
        with tracking(f"{name}: predicting"):
            found = predict_head(head, table, name, config, embedder)
            claim_folder(out, PREDICTIONS_KIND)
            file = write_table(table, out / f"{name}.h5ad")
            panels = {"predicted": found.labels}
            if (found.raw != found.labels).any():
                panels["most probable"] = found.raw
            if found.scores is not None:
                panels = {"true": find_labels(table, {task: head.label})[task], **panels}
                write_text(out / f"{name}_{task}_scores.csv", found.scores.per_class.to_csv(float_format="%.4f"))
            plot_tissue(find_coordinates(table, spatial_key_of(table)), panels, out / f"{name}_{task}.png")
        score = f", macro-F1 {found.scores.macro_f1:.3f}, accuracy {found.scores.accuracy:.3f}" if found.scores else ""
        say(f"{name}: {file}{score}")
        for alarm in found.alarms:
            say(f"  warning: {alarm}")
        all_scores.append(found.scores)
    return all_scores


def _embedder(model: Path | None) -> Embedder | None:
    return None if model is None else load_embedder(model)


def _require_absent(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise ConfigError(f"output {path}: found an earlier result; expected none. Choose another output, or set --overwrite.")
