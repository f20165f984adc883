"""`stofm report`: a page of what lies at a path, told apart by its marker or its suffix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from corpus.store import CORPUS_KIND
from downstream.evaluate import EVALUATION_KIND
from pretrain.launch import RUN_KIND
from stofm.durable import MARKER, read_json
from stofm.errors import ConfigError
from tools.console import say, tracking

REPORT = "report.html"
MARK = b'<html lang="en" data-kind='  # of a page that may be written anew


def run_report(path: Path, out: Path | None, *, genes: Sequence[str]) -> Path:
    """Write the report of a slice, corpus, run or evaluation; returns the file.

    Raises
    ------
    ConfigError
        If `path` is none of these, or `out` is a file that is no report.
    """
    kind = _kind_of(path)
    out = out or (
        path.with_name(f"{path.stem}_{REPORT}") if kind == "slice" else Path(REPORT if path == Path() else f"{path.resolve().name}_{REPORT}")
    )
    if out.is_dir():
        raise ConfigError(f"output {out}: found a folder; expected a file. Name one, such as {out / REPORT}.")
    if out.is_file() and MARK not in out.read_bytes()[:4096]:
        raise ConfigError(f"output {out}: found a file that is no report; expected none, or a report to replace. Choose another --out.")
    if kind == "slice":
        from tools.reports.slice_page import slice_report

        slice_report(path, out, genes=genes, track=tracking)
    elif kind == "corpus":
        from tools.reports.corpus_page import corpus_report

        corpus_report(path, out, track=tracking)
    elif kind == "run":
        from tools.reports.run_page import run_report as report_run

        report_run(path, out)
    else:
        from tools.reports.evaluation_page import evaluation_report

        evaluation_report(path, out)
    say(f"report: {out} ({out.stat().st_size / 1e6:.1f} MB; open it in a browser)")
    return out


def _kind_of(path: Path) -> str:
    if path.is_file() and path.suffix == ".h5ad":
        return "slice"
    kinds = {CORPUS_KIND: "corpus", RUN_KIND: "run", EVALUATION_KIND: "evaluation"}
    found = read_json(path / MARKER).get("kind") if (path / MARKER).is_file() else None
    if found not in kinds:
        holds = f"a folder of kind {found!r}" if found else "no such file or folder" if not path.exists() else "something else"
        raise ConfigError(
            f"{path}: found {holds}; expected an embedded slice (.h5ad), or the folder of a corpus, a run or an evaluation. Correct the path."
        )
    return kinds[str(found)]
