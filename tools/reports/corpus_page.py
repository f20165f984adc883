"""The report of a corpus: its slices, what became of every cell and why, genes, copies, splits, a thumbnail of each slice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from corpus.descriptions import UNKNOWN
from corpus.store import Corpus, truth_path
from corpus.summary import cells_by_fate, summary_lines
from corpus.truth import read_genes, read_labelled_places
from downstream.plots import tissue_thumbnail
from tools.reports.charts import Table, bars_chart, curves_chart, facts_table, table_of
from tools.reports.page import Picture, Section, write_page

Track = Callable[[str], AbstractContextManager[None]]


def corpus_report(folder: Path, out: Path, *, track: Track) -> Path:
    """Write the report of a finished corpus; raises as `Corpus`."""
    corpus = Corpus(folder)
    manifest, entries = corpus.manifest, corpus.manifest["slices"]
    with track(f"{folder.name}: genes and pictures of {len(entries)} slices"):
        pictures, genes = [], {}
        for entry in entries:
            path = truth_path(folder, entry["slice_id"])
            pictures.append(_thumbnail(path, entry))
            genes[entry["slice_id"]] = read_genes(path)[0]
    sums = manifest["totals"]["all"]
    counts = {"slices": sums["slices"], "cells": sums["cells"], "sub-slices": sums["sub_slices"], "genes": len(corpus.vocab.gene_ids),
              "slices left out": len(manifest["left_out"]), "set aside": len(manifest["quarantined"])}  # fmt: skip
    facts = {name: f"{n:,}" for name, n in counts.items()} | {"corpus id": corpus.corpus_id[:12]}
    sections = [
        Section("Slices", tables=[_slices_table(entries)], charts=[_cells_of(entries, fact) for fact in ("technology", "species", "tissue")]),
        _fates_section(manifest),
        _genes_section(entries, genes, corpus.vocab.gene_ids),
        _copies_section(folder),
        _splits_section(entries),
        Section("Pictures", "Every slice, coloured by its first label where it has one.", pictures=pictures),
        Section("Settings", code=(folder / "config.yaml").read_text(encoding="utf-8")),
    ]
    lead = "What the corpus holds, and what became of every slice and every cell that was offered to it."
    return write_page(out, kind="corpus", title=folder.resolve().name, lead=lead, facts=facts, sections=sections)


def _slices_table(entries: Iterable[Mapping[str, Any]]) -> Table:
    rows = {
        entry["slice_id"]: {
            **{fact: str(entry["source"].get(fact) or UNKNOWN) for fact in ("technology", "species", "tissue", "donor")},
            "cells of the source": entry["n_in"], "cells kept": entry["n_cells"] - entry["n_cells_without_gene"],
            "sub-slices": entry["n_sub_slices"], "labels": ", ".join(entry["labels"]) or "none", "split": entry["split"] or "none",
        } for entry in entries
    }  # fmt: skip
    return table_of(pd.DataFrame.from_dict(rows, orient="index"), "Slices of the corpus", corner="slice")


def _cells_of(entries: Iterable[Mapping[str, Any]], fact: str) -> Any:
    values = [str(entry["source"].get(fact) or UNKNOWN) for entry in entries]
    cells = pd.Series([entry["n_cells"] for entry in entries], index=values).groupby(level=0).sum().sort_values(ascending=False)
    return bars_chart(f"Cells by {fact}", "", cells, x_title="cells")


def _fates_section(manifest: Mapping[str, Any]) -> Section:
    """Every cell of every input: kept, dropped, left out, set aside, and why."""
    rows = pd.DataFrame(cells_by_fate(manifest))
    rows["n_cells"] = rows["n_cells"].astype("float")  # a slice that could not be read has no number
    rows["why"] = rows["fate"] + rows["code"].where(rows["code"] == "", ": " + rows["code"])
    sums = rows.groupby("why", sort=False)["n_cells"].sum().astype(int)
    tables = [facts_table({str(why): n for why, n in sums.items()}, "Cells of all sources by what became of them")]
    lost = rows[rows["fate"] != "kept"]
    if len(lost):
        table = lost.set_index("slice_id")[["fate", "code", "n_cells", "detail"]].rename(columns={"code": "reason", "n_cells": "cells"})
        tables.append(table_of(table, "What is not in the corpus, and why", corner="slice"))
    return Section("Kept, dropped, set aside", " ".join(f"{line[:1].upper()}{line[1:]}." for line in summary_lines(manifest)[-2:]), tables=tables)


def _genes_section(entries: Iterable[Mapping[str, Any]], genes: Mapping[str, np.ndarray], vocabulary: np.ndarray) -> Section:
    """How many of a slice's genes and counts are used, and in how many slices a gene is measured."""
    rows = {
        entry["slice_id"]: {
            "genes of the source": entry["genes_audit"]["n_genes"], "mapped": entry["genes_audit"]["n_mapped"],
            "share of counts mapped": entry["genes_audit"]["share_of_counts_mapped"], "with a token": entry["tokens_audit"]["n_with_token"],
            "share of counts with a token": entry["tokens_audit"]["share_of_counts_with_token"],
            "markers lost": ", ".join(entry["genes_audit"]["markers_lost"]) or "none",
        } for entry in entries
    }  # fmt: skip
    table = pd.DataFrame.from_dict(rows, orient="index")
    shades = table.map(lambda value: value if isinstance(value, float) else 0.0)
    n_slices = pd.Series(np.concatenate([np.unique(one) for one in genes.values()])).value_counts().reindex(vocabulary, fill_value=0)
    coverage = pd.Series({least: int((n_slices >= least).sum()) for least in range(1, len(genes) + 1)})
    text = f"Of {len(vocabulary):,} genes with a token, {int(coverage.iloc[-1]):,} are measured in every slice."
    chart = curves_chart("Gene coverage", text, {"genes": coverage}, x_title="slices, at least", y_title="genes measured in them")
    return Section("Genes", charts=[chart], tables=[table_of(table, "Genes of each slice", corner="slice", shades=shades)])


def _copies_section(folder: Path) -> Section:
    path = folder / "dedup.parquet"
    rows = pd.read_parquet(path) if path.is_file() else pd.DataFrame()
    if rows.empty:
        return Section("Copies", "No two slices hold the same cells.")
    return Section(
        "Copies", "Slices that hold the same cells as another one.", tables=[table_of(rows.set_index("slice_id"), "Groups of copies", corner="slice")]
    )


def _splits_section(entries: Iterable[Mapping[str, Any]]) -> Section:
    rows = pd.DataFrame([{"split": entry["split"] or "none", "slices": 1, "cells": entry["n_cells"]} for entry in entries])
    if set(rows["split"]) == {"none"}:
        return Section("Splits", "No splits were asked for.")
    return Section(
        "Splits", "Whole donors or studies; no tissue is in two of them.", tables=[table_of(rows.groupby("split").sum(), "Splits", corner="split")]
    )


def _thumbnail(path: Path, entry: Mapping[str, Any]) -> Picture:
    coords_um, labels = read_labelled_places(path)
    name, values = next(iter(labels.items()), (None, None))
    of = f", coloured by {name}" if name else ""
    return Picture(
        f"{entry['slice_id']}: {entry['n_cells']:,} cells{of}", f"Map of slice {entry['slice_id']}{of}", tissue_thumbnail(coords_um, values)
    )
