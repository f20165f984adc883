"""The report of an evaluation: its table with intervals, differences slice by slice, scores of classes, pictures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from downstream.evaluate import STOFM
from stofm.durable import read_json
from tools.reports.charts import Chart, Table, differences_chart, facts_table, table_of
from tools.reports.page import Picture, Section, write_page

KEYS = ["task", "held_out", "features"]
LOW, HIGH = ("_low", "_lo", "_lower"), ("_high", "_hi", "_upper")  # endings of a score's interval


def evaluation_report(folder: Path, out: Path) -> Path:
    """Write the report of an evaluation folder."""
    table = pd.read_csv(folder / "table.csv", dtype={name: str for name in KEYS})
    scores = score_names(table)
    sections = []
    for task, rows in table.groupby("task", sort=False):
        charts = [chart for score in scores[:2] if (chart := _differences(str(task), rows, score)) is not None]
        pictures = [_picture(path) for path in sorted(folder.glob(f"{task}_*.png"))]
        sections.append(
            Section(str(task), charts=charts, tables=[_means(str(task), rows, scores), _by_slice(str(task), rows, scores)], pictures=pictures)
        )
    sections += [_classes_section(folder), Section("Configuration", code=(folder / "config.yaml").read_text(encoding="utf-8"))]
    n_slices = table["held_out"].nunique()
    seen = table[table["seen_in_pretraining"]]["held_out"].nunique() if "seen_in_pretraining" in table else None
    facts = {"tasks": f"{table['task'].nunique()}", "held-out slices": f"{n_slices}", "kinds of features": f"{table['features'].nunique()}"}
    facts |= {} if seen is None else {"seen in pretraining": f"{seen} of {n_slices}"}
    lead = "Each slice was held out in turn, and the same kind of head fitted on the others for every kind of features."
    return write_page(out, kind="evaluation", title=folder.resolve().name, lead=lead, facts=facts, sections=sections)


def score_names(table: pd.DataFrame) -> list[str]:
    """Return the columns of a table that are scores: numbers, and no end of an interval."""
    return [name for name in table.columns if name not in KEYS and table[name].dtype.kind == "f" and not name.endswith((*LOW, *HIGH))]


def _means(task: str, rows: pd.DataFrame, scores: list[str]) -> Table:
    """Means over held-out slices with the range of the slices; the best of a column tinted."""
    groups = rows.groupby("features", sort=False)[scores]
    means = groups.mean()
    ends = {score: zip(means[score], groups.min()[score], groups.max()[score], strict=True) for score in scores}
    text = {score: [f"{mean:.3f} ({low:.3f} to {high:.3f})" for mean, low, high in rows] for score, rows in ends.items()}
    shades = means.eq(means.max()).astype(float) * 0.6
    return table_of(pd.DataFrame(text, index=means.index), f"{task}: mean over held-out slices (least to largest)", corner="features", shades=shades)


def _by_slice(task: str, rows: pd.DataFrame, scores: list[str]) -> Table:
    """A row per held-out slice and kind of features; scores with the intervals that the table has."""
    cells = {score: [_with_interval(row, score) for _, row in rows.iterrows()] for score in scores}
    index = rows["held_out"] + ": " + rows["features"]
    return table_of(pd.DataFrame(cells).set_axis(index), f"{task}: every held-out slice", corner="slice: features")


def _with_interval(row: pd.Series, score: str) -> str:
    low, high = (next((row[score + end] for end in ends if score + end in row and pd.notna(row[score + end])), None) for ends in (LOW, HIGH))
    return f"{row[score]:.3f}" + (f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else "")


def _differences(task: str, rows: pd.DataFrame, score: str) -> Chart | None:
    """The model less each other kind of features on the same slice."""
    wide = rows.pivot_table(index="held_out", columns="features", values=score, sort=False)
    if STOFM not in wide or wide.shape[1] < 2:
        return None
    others = [name for name in dict.fromkeys(rows["features"]) if name != STOFM]
    found = [{"name": f"less {name}", "slice": str(held_out), "difference": float(difference)}
             for name in others for held_out, difference in (wide[STOFM] - wide[name]).items()]  # fmt: skip
    word = score.replace("_", " ")
    return differences_chart(f"{STOFM}, differences in {word}", f"{task}: one point a held-out slice, right of 0 is better.", pd.DataFrame(found))


def _classes_section(folder: Path) -> Section:
    path = folder / "per_class.csv"
    if not path.is_file():
        return Section("")
    rows = pd.read_csv(path, dtype={"class": str})
    tables = []
    for task, of_task in rows[rows["features"] == STOFM].groupby("task", sort=False):
        wide = of_task.pivot_table(index="class", columns="held_out", values="f1", sort=False)
        tables.append(table_of(wide, f"{task}: F1 of each class by held-out slice, {STOFM}", corner="class", shades=wide))
    receipt = folder / "receipt.json"
    tables += [facts_table(read_json(receipt), "Receipt")] if receipt.is_file() else []
    return Section("Classes", tables=tables)


def _picture(path: Path) -> Picture:
    return Picture(path.stem, f"Maps of {path.stem}: true labels, and those predicted from each kind of features", path.read_bytes())
