"""The report of an adaptation as Markdown: each number before and after, and what may not be read into it."""

from __future__ import annotations

from typing import Any

from pretrain.adapt import AFTER, BEFORE

FEATURES = {"cell_embeddings": "cell encoder", "cell_repr": "SToFM"}


def markdown_report(report: dict[str, Any]) -> str:
    """Return tables of losses and probes, before and after."""
    lines = [
        "# Adaptation",
        "",
        f"From weights {report['adapted_from'][:12]} to {report['weights_sha256'][:12]}, {report['settings']['method']}.",
        "",
        "| measured on | loss (lower is better) | before | after | change |",
        "|---|---|---|---|---|",
    ]
    losses, probes = report["losses"], report["probes"]
    for name, before in losses.get(BEFORE, {}).items():
        lines += [_row(name, loss, value, losses[AFTER][name][loss]) for loss, value in before.items()]
    rows = [
        _row(name, f"{task}, {FEATURES[features]}", value, probes[AFTER][name][task][features])
        for name, tasks in probes[BEFORE].items()
        for task, of_task in tasks.items()
        for features, value in of_task.items()
    ]
    if rows:
        lines += ["", "| measured on | probe, macro-F1 (higher is better) | before | after | change |", "|---|---|---|---|---|", *rows]
    lines += [
        "",
        "Before: heads of the objectives learned anew on the weights as they were, frozen; after: all of it trained on. Losses are means over all "
        "targets in evaluation mode, masks the same. After the encoder stage `mcm` and `context` ask for the new embeddings, so their change also "
        "holds how easily those are predicted. Probes: linear, fitted outside of one block of each slice, scored in it. Held-out blocks were not "
        "trained on. A reference that grows worse is what the adaptation forgot.",
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, what: str, before: float, after: float) -> str:
    return f"| {name} | {what} | {before:.4f} | {after:.4f} | {after - before:+.4f} |"
