"""Leave one slice out: heads fitted on the other slices of a group, the model's features beside plain ones, in one table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pandas as pd
from pydantic import Field

from corpus.readers import read_slice, slice_name
from corpus.slice import FloatArray, Slice, SliceSpec, StrArray
from corpus.steps import input_sha256
from downstream.baselines import pca_features, with_neighbor_mean
from downstream.embedding import SliceEmbedding, embed_slice, load_embedder
from downstream.heads import Task, most_probable
from downstream.plots import plot_tissue
from downstream.probes import ProbeConfig, fit_probe
from downstream.scores import score_labels
from stofm.config import FrozenModel
from stofm.durable import claim_folder, write_json, write_text
from stofm.errors import DataError, located

EVALUATION_KIND = "stofm-evaluation/1"

PCA, PCA_NEIGHBORS, CELL_ENCODER, ENCODER_NEIGHBORS, STOFM = "PCA", "PCA + neighbour mean", "cell encoder", "cell encoder + neighbour mean", "SToFM"


class TaskConfig(FrozenModel):
    """One comparison: slices of one kind, each held out in turn."""

    name: str
    task: Task
    slices: list[SliceSpec] = Field(min_length=2)


class EvaluateConfig(FrozenModel):
    """`stofm evaluate`: which model on which tasks."""

    model: str = Field(description="Model folder: the `model/` of a run.")
    out: str
    tasks: list[TaskConfig] = Field(min_length=1)
    probe: ProbeConfig = Field(default_factory=ProbeConfig, description="The same head for every kind of features.")


def evaluate(config: EvaluateConfig, *, track: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()) -> pd.DataFrame:
    """Run an evaluation; returns and writes one row per task, held-out slice and kind of features.

    Writes ``table.csv``, ``table.md``, ``per_class.csv``, a picture per task and held-out slice, the configuration and a
    receipt into `config.out`.
    """
    out = Path(config.out)
    embedder = load_embedder(Path(config.model))
    seen_inputs = set(embedder.model.meta.trained_on.get("inputs", {}).values())
    claim_folder(out, EVALUATION_KIND)
    rows, per_class = [], []
    embedded: dict[str, SliceEmbedding] = {}
    for task in config.tasks:
        slices = [read_slice(spec) for spec in task.slices]
        for one, spec in zip(slices, task.slices, strict=True):
            if task.task not in one.labels or not (one.labels[task.task] != "").any():
                raise DataError(f"slice {one.slice_id!r}: found no {task.task!r} labels; expected some. Name their column with `labels`.")
            if (key := spec.model_dump_json(exclude={"labels"})) not in embedded:
                with track(f"{one.slice_id}: embedding"), located(f"slice {one.slice_id!r} ({spec.path})"):
                    embedded[key] = embed_slice(one, embedder)
        embeddings = [embedded[spec.model_dump_json(exclude={"labels"})] for spec in task.slices]
        for held_out, (one, spec) in enumerate(zip(slices, task.slices, strict=True)):
            was_seen = input_sha256(spec) in seen_inputs
            true, pictures = one.labels[task.task], {"true": one.labels[task.task]}
            with track(f"{task.name}: {one.slice_id} held out"):
                for features, predicted in _predictions(slices, embeddings, task.task, held_out, config.probe):
                    scores = score_labels(true, predicted)
                    rows.append({"task": task.name, "held_out": slice_name(spec), "features": features, "macro_f1": scores.macro_f1,
                                 "accuracy": scores.accuracy, "seen_in_pretraining": was_seen})  # fmt: skip
                    per_class.append(scores.per_class.assign(task=task.name, held_out=slice_name(spec), features=features))
                    pictures[f"{features}: F1 {scores.macro_f1:.2f}"] = predicted
                plot_tissue(one.coords_um, pictures, out / f"{task.name}_{one.slice_id}.png")
    table = pd.DataFrame(rows)
    write_text(out / "table.csv", table.to_csv(index=False, float_format="%.4f"))
    write_text(out / "per_class.csv", pd.concat(per_class).to_csv(float_format="%.4f"))
    write_text(out / "table.md", markdown_table(table))
    write_text(out / "config.yaml", config.to_yaml())
    write_json(out / "receipt.json", {"weights_sha256": embedder.model.weights_sha256, "vocabulary_sha256": embedder.vocab.sha256})
    return table


def markdown_table(table: pd.DataFrame) -> str:
    """Return the mean macro-F1 and accuracy over held-out slices, tasks as rows and kinds of features as columns."""
    kinds = list(dict.fromkeys(table["features"]))
    lines = [f"| task | {' | '.join(kinds)} |", "|---|" + "---|" * len(kinds)]
    for name, rows in table.groupby("task", sort=False):
        mean = rows.groupby("features")[["macro_f1", "accuracy"]].mean()
        best = mean["macro_f1"].idxmax()
        cells = [f"{mean.macro_f1[kind]:.3f} / {mean.accuracy[kind]:.3f}" for kind in kinds]
        cells = [f"**{cell}**" if kind == best else cell for kind, cell in zip(kinds, cells, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    seen = table[table["seen_in_pretraining"]]["held_out"].nunique()
    lines += ["", f"Macro-F1 / accuracy, mean over held-out slices; the best macro-F1 of a row in bold. {seen} of {table['held_out'].nunique()} "
              "held-out slices were in the pretraining corpus, without their labels."]  # fmt: skip
    return "\n".join(lines) + "\n"


def _predictions(
    slices: list[Slice], embeddings: list[SliceEmbedding], task: Task, held_out: int, config: ProbeConfig
) -> Iterator[tuple[str, StrArray]]:
    """Yield each kind of features with the labels that a head on them gives the held-out slice."""
    training = [number for number in range(len(slices)) if number != held_out]
    pca = pca_features(slices, fit_on=training)
    cell = [one.cell_embeddings for one in embeddings]
    features: dict[str, list[FloatArray]] = {
        PCA: pca,
        PCA_NEIGHBORS: [with_neighbor_mean(one, st_slice.coords_um) for one, st_slice in zip(pca, slices, strict=True)],
        CELL_ENCODER: cell,
        ENCODER_NEIGHBORS: [with_neighbor_mean(one, st_slice.coords_um) for one, st_slice in zip(cell, slices, strict=True)],
        STOFM: [one.cell_repr for one in embeddings],
    }
    for name, of_slices in features.items():
        probe = fit_probe([(of_slices[number], slices[number].labels[task]) for number in training], config)
        yield name, most_probable(probe.classes, probe.predict_proba(of_slices[held_out]))
