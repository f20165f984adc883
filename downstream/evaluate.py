"""Held-out slices, donors or blocks: the same head on the model's features and on plain ones, in one table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field, field_validator

from corpus.readers import read_slice, slice_name
from corpus.slice import FloatArray, IntArray, Slice, SliceSpec, StrArray
from corpus.steps import input_sha256
from downstream.bootstrap import N_BLOCKS, block_confusions
from downstream.cost import Cost, measured
from downstream.embedding import load_embedder
from downstream.evaluation_table import html_table, markdown_table, summarise
from downstream.features import Features, ModelParts, TaskFeatures, model_features
from downstream.heads import LOCALITIES, Task, most_probable
from downstream.peers import PeerName, peer_features
from downstream.plots import plot_tissue
from downstream.probes import ProbeConfig, fit_probe
from downstream.scores import score_labels
from downstream.splits import HELD_OUT, TRAINING, Fold, SplitConfig, stored_folds, tissue_blocks
from stofm.cell_encoder import CellEncoder
from stofm.checkpoint import ENCODER_START
from stofm.config import FrozenModel
from stofm.durable import check_folder, claim_folder, write_json, write_text
from stofm.errors import ConfigError, DataError, located
from stofm.weights import tensors_sha256

EVALUATION_KIND = "stofm-evaluation/1"
MAJORITY = "majority"


class TaskConfig(FrozenModel):
    """One comparison: labelled slices of one kind, and how they are parted."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,60}$")
    task: Task
    slices: list[SliceSpec] = Field(min_length=1)
    split: SplitConfig = Field(default_factory=SplitConfig)


class EvaluateConfig(FrozenModel):
    """`stofm evaluate`: which model on which tasks."""

    model: str = Field(description="Model folder: the `model/` of a run.")
    out: str
    tasks: list[TaskConfig] = Field(min_length=1)
    probe: ProbeConfig = Field(default_factory=ProbeConfig, description="The same head for every kind of features.")
    seeds: list[int] = Field([0], min_length=1, description="Of splits and heads; scores are means over them.")
    allow_seen: bool | list[str] = Field(
        False, description="Slices of the model's corpus that may be evaluated on all the same, by name; true: any. They are named in the table."
    )
    encoder_start: str | None = Field(
        None, description="Cell encoder before its adaptation; default: the one that the model's run kept beside `model/`."
    )
    without_virtual_cells: str | None = Field(
        None, description="Model trained without virtual cells; default: the same model, shown none when it embeds."
    )
    peers: list[PeerName] = Field(default_factory=list, description="Further rows, by methods of others that are installed.")

    @field_validator("tasks")
    @classmethod
    def _names_differ(cls, tasks: list[TaskConfig]) -> list[TaskConfig]:
        names = [task.name for task in tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"two tasks of one name among {names}; expected different names, for files are named after them")
        return tasks


@dataclass(eq=False)
class Results:
    """What an evaluation has found so far.

    Attributes
    ----------
    scores : one dictionary per task, row, slice and seed
    confusions : {task: {row: for every slice, for every seed, (blocks, C, P)}}
    """

    scores: list[dict[str, object]] = field(default_factory=list)
    per_class: list[pd.DataFrame] = field(default_factory=list)
    confusions: dict[str, dict[str, list[list[IntArray]]]] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)

    def write(self, out: Path) -> pd.DataFrame:
        """Write the tables of all tasks that are done; returns the summary."""
        scores = pd.DataFrame(self.scores)
        summary = summarise(scores, self.confusions)
        write_text(out / "scores.csv", scores.to_csv(index=False, float_format="%.4f"))
        write_text(out / "per_class.csv", pd.concat(self.per_class).to_csv(float_format="%.4f"))
        write_text(out / "table.csv", summary.to_csv(index=False, float_format="%.4f"))
        write_text(out / "table.md", markdown_table(summary, scores, self.splits))
        write_text(out / "table.html", html_table(summary, scores, self.splits, pictures=sorted(file.name for file in out.glob("*.png"))))
        return summary


def evaluate(
    config: EvaluateConfig, *, overwrite: bool = False, track: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()
) -> Path:
    """Run an evaluation into `config.out`; returns its Markdown table.

    Writes after every task, so that a later fault leaves what is done: ``table.md``, ``.csv`` and ``.html`` (means with intervals),
    ``scores.csv`` (a row per task, kind of features, slice and seed), ``per_class.csv``, ``splits/``, a picture per task and slice;
    beside them the configuration and a receipt.

    Raises
    ------
    ConfigError
        If `config.out` holds an evaluation and `overwrite` is not set, or a slice was in the model's corpus and is not named in `allow_seen`.
    DataError
        If a slice has no labels of a task, or a split leaves nothing to train on.
    """
    out = Path(config.out)
    check_folder(out, EVALUATION_KIND)
    if (out / "table.md").is_file() and not overwrite:
        raise ConfigError(f"output {out}: found an evaluation; expected none. Choose another `out`, or set --overwrite.")
    parts = _model_parts(config)
    inputs = {spec.path: input_sha256(spec) for task in config.tasks for spec in task.slices}
    seen = _require_unseen(config, parts, inputs)
    claim_folder(out, EVALUATION_KIND)
    write_text(out / "config.yaml", config.to_yaml())
    results, embedded = Results(), dict[str, dict[str, Features]]()
    for task in config.tasks:
        slices = [read_slice(spec) for spec in task.slices]
        _require_labels(slices, task.task)
        keys = [spec.model_dump_json(exclude={"labels"}) for spec in task.slices]
        for one, spec, key in zip(slices, task.slices, keys, strict=True):
            if key not in embedded:
                with track(f"{one.slice_id}: embedding"), located(f"slice {one.slice_id!r} ({spec.path})"):
                    embedded[key] = model_features(one, parts)
        peers = {str(name): peer_features(name, seed=config.seeds[0]) for name in config.peers}
        features = TaskFeatures(slices, [embedded[key] for key in keys], peers)
        with track(f"{task.name}: {len(features.rows) + 1} kinds of features"), located(f"task {task.name}"):
            _run_task(task, features, config, [inputs[spec.path] for spec in task.slices], seen, results)
        results.write(out)
    receipt = {"weights_sha256": parts.embedder.model.weights_sha256, "vocabulary_sha256": parts.embedder.vocab.sha256}
    write_json(out / "receipt.json", {**receipt, "inputs": inputs, "splits": results.splits, "seen": None if seen is None else sorted(seen)})
    return out / "table.md"


def _run_task(task: TaskConfig, features: TaskFeatures, config: EvaluateConfig, inputs: list[str], seen: set[str] | None, results: Results) -> None:
    """Predict and score the held-out cells of every slice, by every kind of features, for every seed."""
    slices, out = features.slices, Path(config.out)
    true = [one.labels[task.task] for one in slices]
    classes = np.unique(np.concatenate([labels[labels != ""] for labels in true]))
    blocks = [tissue_blocks(one, N_BLOCKS) for one in slices]
    pictures = [{"true": labels} for labels in true]
    confusions: dict[str, list[list[IntArray]]] = {}
    for seed in config.seeds:
        path = out / "splits" / f"{task.name}_seed{seed}.safetensors"
        folds, results.splits[f"{task.name}, seed {seed}"] = stored_folds(path, slices, task.split, seed=seed, inputs=inputs)
        unseen = _classes_without_training(true, folds)
        probe_config = config.probe.model_copy(update={"seed": seed})
        for row, proba, cost, missing in _predictions(task.task, features, true, classes, folds, blocks, probe_config):
            for number, one in enumerate(slices):
                held = np.any([fold.roles[number] == HELD_OUT for fold in folds], axis=0)
                was_seen = None if seen is None else one.slice_id in seen
                about = {"task": task.name, "features": row, "slice": one.slice_id, "seed": seed, "seen_in_pretraining": was_seen,
                         "classes_without_training": "|".join(unseen[number]), "missing": missing}  # fmt: skip
                if missing:
                    results.scores.append(about)
                    continue
                predicted = np.where(held, most_probable(classes, proba[number]), "")
                scored = np.where(held, true[number], "")
                scores = score_labels(scored, predicted, proba[number].max(axis=1))
                results.scores.append({**about, **scores.numbers(), "seconds": cost.seconds, "peak_mb": cost.peak_mb})
                results.per_class.append(scores.per_class.assign(task=task.name, features=row, slice=one.slice_id, seed=seed))
                confusions.setdefault(row, [[] for _ in slices])[number].append(block_confusions(scored, predicted, blocks[number]))
                if seed == config.seeds[0]:
                    pictures[number][f"{row}: F1 {scores.macro_f1:.2f}"] = predicted
    results.confusions[task.name] = confusions
    for one, panels in zip(slices, pictures, strict=True):
        plot_tissue(one.coords_um, panels, out / f"{task.name}_{one.slice_id}.png")


def _predictions(
    task: Task, features: TaskFeatures, true: list[StrArray], classes: StrArray, folds: list[Fold], blocks: list[IntArray], config: ProbeConfig
) -> Iterator[tuple[str, list[FloatArray], Cost, str]]:
    """Yield each row's name, its probabilities for the held-out cells of every slice, (n_cells, C) and NaN elsewhere, its cost, or what it lacks."""
    n_classes = len(classes)
    for row in [MAJORITY, *features.rows]:
        proba = [np.full((len(labels), n_classes), np.nan, np.float32) for labels in true]
        cost, made = Cost(), dict[int, Cost]()
        for fold in folds:
            training = [np.where(roles == TRAINING, labels, "") for roles, labels in zip(fold.roles, true, strict=True)]
            found = Features() if row == MAJORITY else features.get(row, fold.fit_on)
            if found.missing:
                break
            made[id(found)] = found.cost
            with measured() as of_head:
                if row == MAJORITY:
                    new = [np.tile(_shares(training, classes), (len(labels), 1)) for labels in true]
                else:
                    examples = [(found.of_slices[number], training[number]) for number in fold.fit_on]
                    probe = fit_probe(examples, config, [blocks[number] for number in fold.fit_on], localities=LOCALITIES[task])
                    new = [np.zeros_like(one) for one in proba]
                    for number, array in enumerate(new):
                        if (fold.roles[number] == HELD_OUT).any():
                            array[:, np.searchsorted(classes, probe.classes)] = probe.predict_proba(found.of_slices[number])
            cost = cost + of_head
            for array, values, roles in zip(proba, new, fold.roles, strict=True):
                array[roles == HELD_OUT] = values[roles == HELD_OUT]
        yield row, proba, sum(made.values(), cost), found.missing


def _shares(training: list[StrArray], classes: StrArray) -> FloatArray:
    """Share of each class among the training labels, (C,)."""
    labels = np.concatenate(training)
    counts = np.bincount(np.searchsorted(classes, labels[labels != ""]), minlength=len(classes))
    return counts / counts.sum()


def _classes_without_training(true: list[StrArray], folds: list[Fold]) -> list[list[str]]:
    """Name, for every slice, the classes of held-out cells that no training cell of their fold has: no head can find them."""
    found: list[set[str]] = [set() for _ in true]
    for fold in folds:
        known = {label for labels, roles in zip(true, fold.roles, strict=True) for label in np.unique(labels[roles == TRAINING]).tolist()}
        for names, labels, roles in zip(found, true, fold.roles, strict=True):
            names |= set(np.unique(labels[roles == HELD_OUT]).tolist()) - known - {""}
    return [sorted(names) for names in found]


def _model_parts(config: EvaluateConfig) -> ModelParts:
    embedder = load_embedder(Path(config.model))
    folder = Path(config.encoder_start) if config.encoder_start else Path(config.model).parent / ENCODER_START
    without = load_embedder(Path(config.without_virtual_cells)) if config.without_virtual_cells else None
    start, no_start = None, f"no folder {folder}; older runs kept none: name one with `encoder_start`"
    if config.encoder_start or folder.is_dir():
        start = CellEncoder.from_folder(folder).eval()
        if start.n_tokens != embedder.vocab.n_tokens:
            raise ConfigError(f"encoder_start {folder}: made for {start.n_tokens} ids, the model's vocabulary has {embedder.vocab.n_tokens}; "
                              "expected the same. Name the encoder that the model started from.")  # fmt: skip
        if tensors_sha256(start.state_dict()) == tensors_sha256(embedder.model.cell_encoder.state_dict()):
            return ModelParts(embedder, None, "the run did not adapt it: see the next row", without)
        start.to(next(embedder.model.cell_encoder.parameters()).device)
    return ModelParts(embedder, start, no_start, without)


def _require_unseen(config: EvaluateConfig, parts: ModelParts, inputs: dict[str, str]) -> set[str] | None:
    """Return the names of the slices that the model was trained on, None if it does not say; `ConfigError` unless `allow_seen` names them all."""
    of_models = [one.model.meta.trained_on.get("inputs") for one in (parts.embedder, parts.without_virtual) if one is not None]
    told = [of_model for of_model in of_models if of_model is not None]
    if len(told) < len(of_models):
        return None
    trained_on = {sha256 for of_model in told for sha256 in of_model.values()}
    seen = {slice_name(spec) for task in config.tasks for spec in task.slices if inputs[spec.path] in trained_on}
    refused = sorted(seen) if config.allow_seen is False else sorted(seen - set(config.allow_seen)) if isinstance(config.allow_seen, list) else []
    if refused:
        raise ConfigError(
            f"model {config.model}: {len(refused)} slices of the evaluation were in its corpus: {', '.join(refused)}; expected slices that it never "
            "saw. Leave them out, or name them in `allow_seen`: the table then says so."
        )
    return seen


def _require_labels(slices: list[Slice], task: Task) -> None:
    for one in slices:
        if task not in one.labels or not (one.labels[task] != "").any():
            raise DataError(f"slice {one.slice_id!r}: found no {task!r} labels; expected some. Name their column with `labels`.")
