"""The report of an evaluation: its table with intervals, differences slice by slice, scores of classes, pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from stofm.durable import read_json
from tools.reports.charts import Chart, Table, differences_chart, facts_table, table_of
from tools.reports.page import Picture, Section, write_page

MODEL = "SToFM"  # what the model's row is called, as in the tables that `stofm evaluate` writes
NOT_SCORES = ["seed", "n_slices", "n_seeds", "seconds", "peak_mb"]
LOW, HIGH = "_low", "_high"


def evaluation_report(folder: Path, out: Path) -> Path:
    """Write the report of an evaluation folder."""
    rows, summary = read_scores(folder)
    scores = [name for name in rows.columns if is_score(rows, name)]
    sections = []
    for task, of_task in rows.groupby("task", sort=False):
        tables = [_summary_table(str(task), summary[summary["task"] == task])] if summary is not None else []
        tables += [_means(str(task), of_task, scores), _by_slice(str(task), of_task, scores)]
        charts = [chart for score in scores[:2] if (chart := _differences(str(task), of_task, score)) is not None]
        pictures = [_picture(path) for path in sorted(folder.glob(f"{task}_*.png"))]
        sections.append(Section(str(task), charts=charts, tables=tables, pictures=pictures))
    sections += [_classes_section(folder), Section("Configuration", code=(folder / "config.yaml").read_text(encoding="utf-8"))]
    if (folder / "receipt.json").is_file():
        sections.append(Section("Receipt", tables=[facts_table(read_json(folder / "receipt.json"), "What was evaluated")]))
    n_slices = rows["held_out"].nunique()
    facts = {"tasks": f"{rows['task'].nunique()}", "held-out slices": f"{n_slices}", "kinds of features": f"{rows['features'].nunique()}"}
    if "seen_in_pretraining" in rows:
        facts["seen in pretraining"] = f"{rows[rows['seen_in_pretraining'].astype(bool)]['held_out'].nunique()} of {n_slices} slices"
    lead = "The same kind of head for every kind of features, fitted without the cells that it is scored on."
    return write_page(out, kind="evaluation", title=folder.resolve().name, lead=lead, facts=facts, sections=sections)


def read_scores(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Return a row per task, held-out slice and kind of features, means over seeds; and the summary with its intervals, where there is one."""
    names = {"task": str, "held_out": str, "slice": str, "features": str}
    table = pd.read_csv(folder / "table.csv", dtype=names)
    if not (folder / "scores.csv").is_file():
        return table, None
    rows = pd.read_csv(folder / "scores.csv", dtype=names).rename(columns={"slice": "held_out"})
    numbers = [name for name in rows.columns if rows[name].dtype.kind in "fb" and name != "seed"]
    return rows.groupby(["task", "held_out", "features"], sort=False)[numbers].mean().reset_index(), table


def is_score(table: pd.DataFrame, name: str) -> bool:
    """Tell whether a column holds scores: numbers that are neither an end of an interval nor a cost."""
    return table[name].dtype.kind == "f" and not name.endswith((LOW, HIGH)) and name not in NOT_SCORES and name != "seen_in_pretraining"


def _summary_table(task: str, rows: pd.DataFrame) -> Table:
    """The table that the evaluation itself wrote, numbers with their intervals."""
    names = [name for name in rows.columns if is_score(rows, name)]
    cells = pd.DataFrame({name: [_with_interval(row, name) for _, row in rows.iterrows()] for name in names}, index=rows["features"])
    return table_of(cells, f"{task}: means with 95 % intervals", corner="features", shades=_best(rows.set_index("features")[names]))


def _means(task: str, rows: pd.DataFrame, scores: list[str]) -> Table:
    """Means over held-out slices with the range of the slices; the best of a column tinted."""
    groups = rows.groupby("features", sort=False)[scores]
    means, low, high = groups.mean(), groups.min(), groups.max()
    text = {score: [f"{mean:.3f} ({least:.3f} to {largest:.3f})" for mean, least, largest in zip(means[score], low[score], high[score], strict=True)]
            for score in scores}  # fmt: skip
    return table_of(pd.DataFrame(text, index=means.index), f"{task}: mean over held-out slices (least to largest)", corner="features",
                    shades=_best(means))  # fmt: skip


def _best(means: pd.DataFrame) -> pd.DataFrame:
    return means.eq(means.max()).astype(float) * 0.6


def _by_slice(task: str, rows: pd.DataFrame, scores: list[str]) -> Table:
    cells = pd.DataFrame({score: [_with_interval(row, score) for _, row in rows.iterrows()] for score in scores})
    return table_of(cells.set_axis(rows["held_out"] + ": " + rows["features"]), f"{task}: every held-out slice", corner="slice: features")


def _with_interval(row: pd.Series, score: str) -> str:
    if pd.isna(row[score]):
        return "–"
    low, high = row.get(score + LOW, np.nan), row.get(score + HIGH, np.nan)
    return f"{row[score]:.3f}" + (f" ({low:.3f} to {high:.3f})" if pd.notna(low) and pd.notna(high) else "")


def _differences(task: str, rows: pd.DataFrame, score: str) -> Chart | None:
    """The model less each other kind of features on the same slice."""
    wide = rows.pivot_table(index="held_out", columns="features", values=score, sort=False)
    others = [name for name in dict.fromkeys(rows["features"]) if name != MODEL and name in wide]
    if MODEL not in wide or not others:
        return None
    found = [{"name": f"less {name}", "slice": str(held_out), "difference": float(difference)}
             for name in others for held_out, difference in (wide[MODEL] - wide[name]).dropna().items()]  # fmt: skip
    word = score.replace("_", " ")
    return differences_chart(f"{MODEL}, paired differences in {word}", f"{task}: one point a held-out slice; right of 0 the model is better.",
                             pd.DataFrame(found))  # fmt: skip


def _classes_section(folder: Path) -> Section:
    path = folder / "per_class.csv"
    if not path.is_file():
        return Section("")
    rows = pd.read_csv(path, dtype={"class": str}).rename(columns={"slice": "held_out"})
    tables = []
    for task, of_task in rows[rows["features"] == MODEL].groupby("task", sort=False):
        wide = of_task.pivot_table(index="class", columns="held_out", values="f1", sort=False)
        tables.append(table_of(wide, f"{task}: F1 of each class by held-out slice, {MODEL}", corner="class", shades=wide))
    return Section("Classes", tables=tables)


def _picture(path: Path) -> Picture:
    return Picture(path.stem, f"Maps of {path.stem}: true labels, and those predicted from each kind of features", path.read_bytes())
