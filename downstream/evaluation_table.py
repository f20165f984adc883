"""The table of an evaluation: means over slices and seeds, intervals, paired differences; as Markdown, CSV and HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from corpus.slice import FloatArray, IntArray
from downstream.bootstrap import N_BLOCKS, N_DRAWS, TAILS, drawn_scores
from downstream.features import PLAIN, STOFM

MEANS = ["macro_f1", "accuracy", "balanced_accuracy", "ari", "nmi", "ece"]
HEADER = ["features", "macro-F1 [95 %]", "less the best PCA row [95 %]", "accuracy", "balanced", "ARI", "NMI", "ECE", "seconds", "peak MB"]


def summarise(scores: pd.DataFrame, confusions: Mapping[str, Mapping[str, Sequence[Sequence[IntArray]]]]) -> pd.DataFrame:
    """Return a line per task and kind of features.

    Columns: task, features; means over slices and seeds; ``macro_f1_low``, ``_high``; ``difference`` to the best PCA row of the task with
    its bounds; seconds and peak memory (of all slices and folds: features and heads); n_slices, n_seeds; what is missing.
    """
    lines = []
    for task, of_task in scores.groupby("task", sort=False):
        draws = drawn_scores(confusions[str(task)])
        mean = {str(name): rows["macro_f1"].mean() for name, rows in of_task.groupby("features") if str(name) in draws}
        best = max(PLAIN, key=lambda name: mean[name])
        for name, rows in of_task.groupby("features", sort=False):
            about = {
                "task": task,
                "features": name,
                "n_slices": rows["slice"].nunique(),
                "n_seeds": rows["seed"].nunique(),
                "missing": rows["missing"].iloc[0],
            }
            if str(name) in draws:
                about |= {column: float(rows[column].mean()) for column in MEANS} | {
                    "seconds": rows["seconds"].max(),
                    "peak_mb": rows["peak_mb"].max(),
                }
                about |= _bounds("macro_f1", draws[str(name)]) | {"difference": mean[str(name)] - mean[best]}
                about |= _bounds("difference", draws[str(name)] - draws[best]) | {"is_best_plain": name == best}
            lines.append(about)
    return pd.DataFrame(lines)


def _bounds(name: str, draws: FloatArray) -> dict[str, float]:
    low, high = np.percentile(draws, TAILS)
    return {f"{name}_low": float(low), f"{name}_high": float(high)}


def markdown_table(summary: pd.DataFrame, scores: pd.DataFrame, splits: Mapping[str, str]) -> str:
    """Return a table per task, and below them what to know in reading them."""
    lines = []
    for task, rows in summary.groupby("task", sort=False):
        lines += [f"### {task}", "", f"| {' | '.join(HEADER)} |", f"|{'---|' * len(HEADER)}"]
        lines += [f"| {' | '.join(cells)} |" for cells in _cells(rows)]
        lines += [""]
    return "\n".join([*lines, *notes(summary, scores, splits)]) + "\n"


def html_table(summary: pd.DataFrame, scores: pd.DataFrame, splits: Mapping[str, str], pictures: Sequence[str]) -> str:
    """Return the same as a page, with the pictures of each task below its table."""
    body = []
    for task, rows in summary.groupby("task", sort=False):
        head = "".join(f"<th>{html.escape(name)}</th>" for name in HEADER)
        lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell.strip('*'))}</td>" for cell in cells) + "</tr>" for cells in _cells(rows))
        body.append(f"<h2>{task}</h2><table><tr>{head}</tr>{lines}</table>")
        body += [f'<img src="{name}" alt="{name}">' for name in pictures if name.startswith(f"{task}_")]
    body += [f"<p>{html.escape(note)}</p>" for note in notes(summary, scores, splits)]
    style = "body{font-family:sans-serif;margin:2em}td,th{padding:.2em .8em;text-align:right}td:first-child{text-align:left}img{max-width:100%}"
    return f'<!doctype html><meta charset="utf-8"><title>SToFM evaluation</title><style>{style}</style>' + "\n".join(body) + "\n"


def _cells(rows: pd.DataFrame) -> list[list[str]]:
    """Text of every cell of one task's table; the best macro-F1 in bold."""
    best = rows["macro_f1"].max()
    cells = []
    for row in rows.to_dict("records"):
        if row["missing"]:
            cells.append([str(row["features"]), f"not available: {row['missing']}", *[""] * (len(HEADER) - 2)])
            continue
        f1 = f"{row['macro_f1']:.3f} [{row['macro_f1_low']:.3f}, {row['macro_f1_high']:.3f}]"
        less = "" if row["is_best_plain"] else f"{row['difference']:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"
        means = [f"{row[name]:.3f}" for name in MEANS[1:]]
        cost = [f"{row['seconds']:.1f}", f"{row['peak_mb']:.0f}"]
        cells.append([str(row["features"]), f"**{f1}**" if row["macro_f1"] == best else f1, less, *means, *cost])
    return cells


def notes(summary: pd.DataFrame, scores: pd.DataFrame, splits: Mapping[str, str]) -> list[str]:
    """Say, a line each, how the numbers came about, what leaked, and how the model did over all tasks."""
    known = scores[scores["missing"] == ""]
    seen = known[known["seen_in_pretraining"].eq(True)]["slice"].unique().tolist()
    unseen = known[known["classes_without_training"] != ""].drop_duplicates(["task", "slice", "seed"])
    f1 = summary[summary["missing"] == ""].pivot(index="task", columns="features", values="macro_f1")
    above = (f1[STOFM] > f1.drop(columns=STOFM).max(axis=1)).sum()
    gain = (f1[STOFM] - f1[list(PLAIN)].max(axis=1)).mean()
    lines = [
        f"{STOFM} is above every other row in {above} of {len(f1)} tasks; its macro-F1 less that of the best PCA row is {gain:+.3f} on average.",
        f"Means over slices and seeds. Intervals: {N_DRAWS} draws of slices, and of some {N_BLOCKS} blocks of tissue within each; the same draws for "
        "all rows of a task. Cells without a label take part in the features, not in the scores; nothing is smoothed. Seconds and memory: all slices "
        "and folds of a task, features and heads; memory beyond what was held before.",
        "The model does not say which slices it was trained on; these may be among them."
        if known["seen_in_pretraining"].isna().any()
        else f"{len(seen)} of {known['slice'].nunique()} slices were in the pretraining corpus, without their labels: {', '.join(seen) or 'none'}.",
    ]
    lines += [f"{one.task}, {one.slice}: no training cell has the class {one.classes_without_training}, which counts as missed."
              for one in unseen.itertuples()]  # fmt: skip
    return [*lines, "Splits: " + "; ".join(f"{name}: {sha256[:12]}" for name, sha256 in splits.items()) + "."]
