"""What became of every slice and every cell of every input: kept, dropped, excluded, a copy, or set aside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stofm.durable import replacing

EXCLUDED, COPY_OF_EXCLUDED, DUPLICATE = "EXCLUDED", "COPY_OF_EXCLUDED", "DUPLICATE"
NO_GENE = "no gene of the vocabulary"
REVIEW = "review: "  # reasons of `corpus.duplicates` that a person should look at begin so; they leave nothing out

Record = dict[str, Any]


@dataclass(frozen=True)
class Fates:
    """What became of every slice.

    Attributes
    ----------
    kept : (slice_id, ...)
        Those that the corpus consists of.
    out : {slice_id: record}
        Usable ones that are left out: their truth record with ``code`` and ``detail``.
    quarantined : {slice_id: record}
    groups : slices that belong to one split
    """

    kept: Sequence[str]
    out: Mapping[str, Record]
    quarantined: Mapping[str, Record]
    groups: Sequence[Sequence[str]]

    def left_out(self) -> list[Record]:
        """The entries of the manifest for usable slices that are left out."""
        fields = ("slice_id", "path", "input_sha256", "n_in", "code", "detail")
        return [{field: record[field] for field in fields} for record in self.out.values()]


def fates_of(truths: Mapping[str, Record], aside: Mapping[str, Record], duplicates: Sequence[Record], exclude: Sequence[str]) -> Fates:
    """Decide which slices the corpus consists of.

    A slice is left out if `exclude` names it, its donor or the sha256 of its file; if it holds the same cells as such a
    one, whichever is the better copy; or if `duplicates` dropped it.
    """
    named = set(exclude)
    out: dict[str, tuple[str, str]] = {}
    for name, record in truths.items():
        found = named & {name, str(record["source"]["donor"]), record["input_sha256"]}
        if found:
            out[name] = EXCLUDED, f"`exclude` names {min(found)}"
    same_cells = [(row["slice_id"], row["copy_of"]) for row in duplicates if row["copy_of"] and not row["reason"].startswith(REVIEW)]
    for _ in same_cells:  # links can form chains
        for one, other in (*same_cells, *((b, a) for a, b in same_cells)):
            if other in out and one not in out:
                out[one] = COPY_OF_EXCLUDED, f"the same cells as {other}"
    for row in duplicates:
        if not row["kept"] and row["slice_id"] not in out:
            out[row["slice_id"]] = DUPLICATE, f"{row['reason']} as {row['copy_of']}"
    groups: dict[int, list[str]] = {}
    for row in duplicates:
        groups.setdefault(row["group"], []).append(row["slice_id"])
    return Fates(
        kept=[name for name in truths if name not in out],
        out={name: {**truths[name], "code": out[name][0], "detail": out[name][1]} for name in truths if name in out},
        quarantined=aside,
        groups=list(groups.values()),
    )


def cells_by_fate(manifest: Mapping[str, Any]) -> list[Record]:
    """Return one row per slice and fate of cells: slice_id, fate, code, n_cells (None where a bad slice could not be counted), detail.

    The rows of a slice add up to the cells of its input.
    """
    rows = []
    for entry in manifest["slices"]:
        in_view = entry["n_cells"] - entry["n_cells_without_gene"]
        fates = [("kept", "", in_view), ("dropped", NO_GENE, entry["n_cells_without_gene"])]
        fates += [("dropped", reason, n_cells) for reason, n_cells in sorted(entry["dropped"].items())]
        rows += [{"slice_id": entry["slice_id"], "fate": fate, "code": code, "n_cells": n, "detail": ""} for fate, code, n in fates if n or not code]
    for fate, part in (("left out", "left_out"), ("quarantined", "quarantined")):
        rows += [{"slice_id": one["slice_id"], "fate": fate, "code": one["code"], "n_cells": one["n_in"], "detail": one["detail"]}
                 for one in manifest[part]]  # fmt: skip
    return rows


def write_summary(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``slices.parquet``, a row per input, and ``rejects.parquet``, a row per slice and reason for which cells are not in the corpus."""
    import pandas as pd

    slices = [
        {
            "slice_id": entry["slice_id"], "path": entry["path"], "input_sha256": entry["input_sha256"], "fate": "kept", "code": "",
            **{fact: str(entry["source"].get(fact, "")) for fact in ("technology", "species", "tissue", "donor")},
            "n_in": entry["n_in"], "n_kept": entry["n_cells"] - entry["n_cells_without_gene"], "n_sub_slices": entry["n_sub_slices"],
            "split": entry["split"],
        }
        for entry in manifest["slices"]
    ]  # fmt: skip
    for fate, part in (("left out", "left_out"), ("quarantined", "quarantined")):
        slices += [{"slice_id": one["slice_id"], "path": one["path"], "input_sha256": one["input_sha256"] or "", "fate": fate, "code": one["code"],
                    "n_in": one["n_in"], "n_kept": 0, "n_sub_slices": 0} for one in manifest[part]]  # fmt: skip
    rejects = [row for row in cells_by_fate(manifest) if row["fate"] != "kept"]
    columns = ["slice_id", "fate", "code", "n_cells", "detail"]
    counts = {name: "Int64" for name in ("n_in", "n_kept", "n_sub_slices")}
    tables = {
        "slices.parquet": pd.DataFrame(slices).astype(counts),
        "rejects.parquet": pd.DataFrame(rejects, columns=columns).astype({"n_cells": "Int64"}),
    }
    for name, table in tables.items():
        with replacing(folder / name) as aside:
            table.to_parquet(aside, index=False)


def summary_lines(manifest: Mapping[str, Any]) -> list[str]:
    """Return the summary for people: a line per slice, then totals that add up."""
    lines = []
    for entry in manifest["slices"]:
        audit = entry["genes_audit"]
        lost = {**entry["dropped"], **({NO_GENE: entry["n_cells_without_gene"]} if entry["n_cells_without_gene"] else {})}
        dropped = f" ({', '.join(f'{n:,} {reason}' for reason, n in sorted(lost.items()))})" if lost else ""
        in_view = entry["n_cells"] - entry["n_cells_without_gene"]
        lines.append(f"{entry['slice_id']}: {in_view:,} of {entry['n_in']:,} cells{dropped} in {entry['n_sub_slices']} sub-slices; "
                     f"{audit['n_mapped']} of {audit['n_genes']} genes, {audit['share_of_counts_mapped']:.1%} of counts"
                     + (f"; {n_cut:,} cells cut at `max_tokens` genes" if (n_cut := entry.get("n_cells_cut", 0)) else ""))  # fmt: skip
    lines += [f"{one['slice_id']}: left out, {one['n_in']:,} cells: {one['detail']} ({one['code']})" for one in manifest["left_out"]]
    lines += [f"{one['slice_id']}: set aside, {_cells(one['n_in'])}: {one['detail']} ({one['code']})" for one in manifest["quarantined"]]
    rows = cells_by_fate(manifest)
    sums: dict[str, int] = {}
    for row in rows:
        what = "kept" if row["fate"] == "kept" else f"{row['fate']}: {row['code']}"
        sums[what] = sums.get(what, 0) + (row["n_cells"] or 0)
    n_unknown = sum(row["n_cells"] is None for row in rows)
    n_slices = {part: len(manifest[part]) for part in ("slices", "left_out", "quarantined")}
    lines.append(
        f"slices: {sum(n_slices.values())} = {n_slices['slices']} kept + {n_slices['left_out']} left out + {n_slices['quarantined']} set aside"
    )
    lines.append(f"cells: {sum(sums.values()):,} = " + " + ".join(f"{n:,} {what}" for what, n in sums.items())
                 + (f"; {n_unknown} slices set aside could not be counted" if n_unknown else ""))  # fmt: skip
    return lines


def _cells(n_cells: int | None) -> str:
    return "cells unknown" if n_cells is None else f"{n_cells:,} cells"
