"""The report of a run: curves of everything its log measures, what its probes say, settings and machine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pretrain.run_log import read_run_log
from stofm.errors import DataError
from tools.reports.charts import Chart, curves_chart, facts_table
from tools.reports.page import Section, write_page

STEP = ("stage", "step")
# Words for what a log may hold; what is not here goes by its own name.
WORDS = {
    "grad_norm": "gradient norm",
    "lr": "learning rate",
    "seconds": "seconds a step",
    "data_wait_share": "share of a step spent waiting for data",
}


def run_report(folder: Path, out: Path) -> Path:
    """Write the report of a run, finished or not; `DataError` if it has not logged a step."""
    lines = read_run_log(folder / "losses.jsonl")
    if not lines:
        raise DataError(f"run {folder}: found no logged step; expected some. Let the run log a step first (`log_every`).")
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    sections = []
    for stage in stages:
        measures = measures_of([line for line in lines if line["stage"] == stage])
        charts = [_chart(stage, name, curves) for name, curves in measures.items()]
        sections.append(Section(f"{stage} stage", charts=charts))
    last = lines[-1]
    is_done = (folder / "model" / "model.json").is_file()
    steps = {line["stage"]: line["step"] for line in lines}
    facts = {"state": "finished" if is_done else f"in the {last['stage']} stage", "steps": ", ".join(f"{stage} {n:,}" for stage, n in steps.items())}
    facts |= {f"{name}, last": f"{value:.4g}" for name, value in last["losses"].items()}
    seconds = [line["seconds"] for line in lines if isinstance(line.get("seconds"), (int, float))]
    if seconds:
        facts["seconds a step"] = f"{pd.Series(seconds).median():.3g}"
    sections += [_records_section(folder), Section("Configuration", code=_text(folder / "config.yaml")), _model_section(folder)]
    lead = "How training went. Curves are as logged; of long runs each point is a mean over a stretch of steps."
    return write_page(out, kind="run", title=folder.resolve().name, lead=lead, facts=facts, sections=sections)


def measures_of(lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, pd.Series]]:
    """Return every number that lines of a log hold, {measure: {curve: values by step}}; a mapping gives a curve per entry.

    Whatever a log may hold beside losses, in this version or a later one, is drawn without being known here.
    """
    curves: dict[str, dict[str, dict[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name in STEP:
                continue
            for inner, number in value.items() if isinstance(value, Mapping) else [("", value)]:
                if isinstance(number, (int, float)) and not isinstance(number, bool):
                    curves.setdefault(name, {}).setdefault(str(inner) or _word(name), {})[line["step"]] = float(number)
    return {name: {inner: pd.Series(points) for inner, points in group.items()} for name, group in curves.items()}


def _chart(stage: str, name: str, curves: Mapping[str, pd.Series]) -> Chart:
    return curves_chart(_word(name).capitalize(), f"{stage} stage.", curves, x_title="step")


def _word(name: str) -> str:
    return WORDS.get(name, name.replace("_", " "))


def _records_section(folder: Path) -> Section:
    """Small JSON records that a run keeps of itself and its machine."""
    tables = []
    for path in sorted(folder.glob("*.json")):
        if path.name == "stofm.json":
            continue
        found = json.loads(_text(path))
        if isinstance(found, Mapping):
            tables.append(facts_table(found, path.name))
    return Section("Run and machine", tables=tables)


def _model_section(folder: Path) -> Section:
    path = folder / "model" / "README.md"
    return Section("Model card", code=_text(path) if path.is_file() else "")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
