"""`stofm segment` and `stofm annotate`, each with `fit` and `predict`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from corpus.readers import read_table, slice_name
from corpus.readers.table import find_coordinates, find_labels
from downstream.embedding import write_table
from downstream.heads import HEAD_KIND, Task, fit_head, load_head, predict_head, save_head
from downstream.plots import plot_tissue
from downstream.probes import ProbeConfig
from downstream.scores import LabelScores
from stofm.config import parse_config
from stofm.durable import check_folder, claim_folder, write_text
from stofm.fields import UNS_STOFM
from tools.console import say, tracking
from tools.specs import slice_specs

PREDICTIONS_KIND = "stofm-predictions/1"


def run_fit(paths: Sequence[Path], out: Path, *, task: Task, label: str, kind: str) -> None:
    """Fit a head on embedded, labelled slices."""
    check_folder(out, HEAD_KIND)
    config = parse_config(ProbeConfig, {"kind": kind}, where="options")
    slices = {slice_name(spec): read_table(spec) for spec in slice_specs(paths)}
    with tracking(f"fitting a {kind} head on {len(slices)} slices"):
        head = fit_head(slices, task, label=label, config=config)
        save_head(out, head)
    say(f"head: {out} ({len(head.probe.classes)} classes: {', '.join(head.probe.classes)})")


def run_predict(paths: Sequence[Path], head_folder: Path, out: Path, *, task: Task) -> list[LabelScores | None]:
    """Predict the labels of embedded slices; returns the scores of those that have true ones."""
    check_folder(out, PREDICTIONS_KIND)
    head = load_head(head_folder, task)
    all_scores = []
    for spec in slice_specs(paths):
        name, table = slice_name(spec), read_table(spec)
        with tracking(f"{name}: predicting"):
            predicted, scores = predict_head(head, table, name)
            claim_folder(out, PREDICTIONS_KIND)
            file = write_table(table, out / f"{name}.h5ad")
            panels = {"predicted": predicted}
            if scores is not None:
                panels = {"true": find_labels(table, {task: head.label})[task], **panels}
                write_text(out / f"{name}_{task}_scores.csv", scores.per_class.to_csv(float_format="%.4f"))
            spatial_key = json.loads(table.uns[UNS_STOFM]["slice"])["spatial_key"]
            plot_tissue(find_coordinates(table, spatial_key), panels, out / f"{name}_{task}.png")
        score = f", macro-F1 {scores.macro_f1:.3f}, accuracy {scores.accuracy:.3f}" if scores else ""
        say(f"{name}: {file}{score}")
        all_scores.append(scores)
    return all_scores
