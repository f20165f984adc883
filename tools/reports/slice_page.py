"""The report of a slice: the tissue to explore, and what its labels, its embedding and its receipt say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from corpus.gene_ids import load_gene_tables, map_to_human
from corpus.readers import read_table, slice_of
from corpus.readers.table import declared_unit, find_coordinates
from corpus.slice import FloatArray, SliceSpec, to_micrometres
from downstream.diagnostics import composition, confusion, neighbor_enrichment, reliability, umap_places
from downstream.embedding import require_embedded
from downstream.palettes import label_colours, number_ramp
from downstream.plots import umap_picture
from downstream.scores import score_labels
from stofm.errors import DataError
from stofm.fields import UNS_STOFM
from tools.reports.charts import Chart, Table, calibration_chart, facts_table, shares_chart, table_of
from tools.reports.page import Picture, Section, TissueData, write_page
from tools.reports.points import NODE_SIZE, Column, pack, page_order, quantise
from tools.reports.slice_columns import CLUSTERS, TASKS, Labels, columns_of, labels_of

if TYPE_CHECKING:
    from anndata import AnnData

Track = Callable[[str], AbstractContextManager[None]]
UMAP_CELLS = 10_000
MOST_CELLS_BESIDE = 300_000  # larger slices open with one map, and a second on request
LONGEST_ARRAY = 32  # of a receipt that is printed
MOST_SHUFFLES, SHUFFLED_CELLS = 200, 20_000_000  # of the enrichment: as many shufflings as these cells allow


def slice_report(path: Path, out: Path, *, genes: Sequence[str], track: Track) -> Path:
    """Write the report of an embedded slice; `DataError` if `path` is no embedded slice, or lacks one of `genes`."""
    with track(f"{path.name}: reading"):
        table = read_table(SliceSpec(path=str(path)))
        features = require_embedded(table, path.stem)
        receipt = table.uns[UNS_STOFM]
        spec = SliceSpec.model_validate({**json.loads(receipt["slice"]), "path": str(path)})
        places = find_coordinates(table, spec.spatial_key)
        coords_um, _ = to_micrometres(places, declared_unit=declared_unit(table.uns), um_per_unit=spec.um_per_unit)
        is_placed = np.asarray(np.isfinite(coords_um).all(axis=1))
        if not is_placed.any():
            raise DataError(f"slice {path.stem!r}: found no cell with a place; expected some. Embed it with another `--spatial-key`.")
    labels = [labels_of(table, task) for task in TASKS]
    with track(f"{path.name}: packing {table.n_obs:,} cells"):
        columns = columns_of(table, labels, genes=genes)
        tissue = tissue_data(coords_um, is_placed, columns, labels)
    sections = []
    for one in labels:
        if one.best is not None:
            with track(f"{path.name}: {TASKS[one.task]}s"):
                sections.append(_labels_section(one))
    with track(f"{path.name}: composition and neighbourhoods"):
        sections.append(_neighborhood_section(coords_um[is_placed], [_placed(one, is_placed) for one in labels]))
    with track(f"{path.name}: UMAP"):
        sections.append(_umap_section(features, columns))
    sections += [_genes_section(table, spec, receipt), _receipt_section(table)]
    status = table.obs["stofm_status"].astype(str)
    facts = {"cells": f"{table.n_obs:,}", "embedded": f"{int((status == 'embedded').sum()):,}", "genes": f"{table.n_vars:,}",
             "tissue": " x ".join(f"{side / 1000:.3g}" for side in np.ptp(coords_um[is_placed], axis=0)) + " mm",
             "model": str(receipt["weights_sha256"])[:12]}  # fmt: skip
    scores = [float(score) for score in _found(receipt, "seam_score")]
    facts |= {"seam score": f"{np.mean(scores):.3f}"} if scores else {}
    lead = f"Every point is a cell of {path.name}, at its place in the tissue. Choose what it is coloured by; below, the same in numbers."
    return write_page(out, kind="slice", title=path.stem, lead=lead, facts=facts, sections=sections, tissue=tissue)


def tissue_data(coords_um: FloatArray, is_placed: np.ndarray, columns: Sequence[Column], labels: Sequence[Labels]) -> TissueData:
    """Pack placed cells, (n, 2) micrometres, and their columns, in the order of a kd-tree."""
    places, step = quantise(coords_um[is_placed])
    order = page_order(places)
    rows = np.flatnonzero(is_placed)[order]
    blocks = {"block-x": pack(places[order, 0]), "block-y": pack(places[order, 1])}
    metas = []
    for number, column in enumerate(columns):
        block = f"block-{number}"
        blocks[block] = pack(column.codes[rows])
        metas.append(column.meta(block))
    names = [column.name for column in columns]
    pairs = [(f"stofm_{one.task}", one.task) for one in labels if one.predicted is not None and one.true is not None]
    first = pairs[0][1] if pairs else next((name for name in (*TASKS, *(f"stofm_{task}" for task in TASKS)) if name in names), names[0])
    compare = pairs[0][0] if pairs and len(rows) <= MOST_CELLS_BESIDE else ""
    hover = [name for name in names if name in TASKS or name in {f"stofm_{task}{end}" for task in TASKS for end in ("", "_probability")}]
    meta = {"n": len(rows), "node_size": NODE_SIZE, "columns": metas, "ramp": number_ramp(), "hover": hover,
            "half": [float(side) / 65535 or 1e-3 for side in places.max(axis=0)], "um_per_unit": step * 65535 / 2}  # fmt: skip
    return TissueData(meta, blocks, first, compare)


def _placed(labels: Labels, is_placed: np.ndarray) -> Labels:
    parts = (None if values is None else values[is_placed] for values in (labels.predicted, labels.confidence, labels.true))
    return Labels(labels.task, *parts)


def _labels_section(labels: Labels) -> Section:
    """How well a task's labels were predicted, where there are true ones."""
    word = TASKS[labels.task]
    if labels.predicted is None or labels.true is None:
        return Section("")
    scores = score_labels(labels.true, labels.predicted)
    table = confusion(labels.true, labels.predicted)
    shares = table.div(table.sum(axis=1), axis=0)
    signed = shares.mul(np.where(np.equal.outer(table.index.to_numpy(), table.columns.to_numpy()), 1.0, -1.0))
    title = f"Confusion of {word}s: cells by true (rows) and predicted class (columns), tinted by share of the row"
    tables = [table_of(table, title, corner="true", shades=signed),
              table_of(scores.per_class, f"Scores of each {word}", corner=word, shades=scores.per_class.assign(n_cells=0.0))]  # fmt: skip
    charts = []
    if labels.confidence is not None and (found := reliability(labels.true, labels.predicted, labels.confidence)) is not None:
        charts.append(calibration_chart(f"Calibration of {word}s", found.bins, found.error))
    text = f"Against the labels in the file: macro-F1 {scores.macro_f1:.3f}, accuracy {scores.accuracy:.3f}."
    return Section(f"{word.capitalize()}s, true and predicted", text, charts=charts, tables=tables)


def _neighborhood_section(coords_um: FloatArray, labels: Sequence[Labels]) -> Section:
    """What regions are made of, and which classes lie side by side."""
    charts: list[Chart] = []
    tables: list[Table] = []
    region, cell_type = (one.best for one in labels)
    if region is not None and cell_type is not None:
        charts.append(shares_chart("Composition", "Share of each cell type among the cells of each region.", composition(region, cell_type)))
    for one in labels:
        if one.best is None or len(np.unique(one.best[one.best != ""])) < 2:
            continue
        n_perms = int(np.clip(SHUFFLED_CELLS // len(coords_um), 20, MOST_SHUFFLES))
        scores = neighbor_enrichment(coords_um, one.best, n_perms=n_perms)
        source = "true" if one.true is not None else "predicted"
        title = f"Neighbourhood enrichment of {source} {TASKS[one.task]}s: z-score of neighbouring pairs against {n_perms} shufflings (squidpy)"
        tables.append(
            table_of(scores, title, corner=TASKS[one.task], digits=1, shades=scores / max(1.0, float(np.nanmax(np.abs(scores.to_numpy())))))
        )
    return Section("Composition and neighbourhoods", charts=charts, tables=tables)


def _umap_section(features: FloatArray, columns: Sequence[Column]) -> Section:
    if int(np.isfinite(features).all(axis=1).sum()) < 20:
        return Section("")
    rows, places = umap_places(features, n_cells=UMAP_CELLS)
    asked = {*TASKS, *(f"stofm_{task}" for task in TASKS), "cluster:stofm", CLUSTERS}
    shown = [column for column in columns if column.name in asked]
    pictures = []
    for column in shown:
        names = np.array(["", *(column.levels or [])])
        picture = umap_picture(places, names[column.codes[rows]], colours=dict(zip(column.levels or [], label_colours(column.n_levels), strict=True)))
        pictures.append(Picture(column.title, f"UMAP of {len(rows):,} cells, coloured by {column.title}", picture))
    of_all = "" if len(rows) == len(features) else f" of a sample of {len(rows):,} cells"
    return Section("UMAP", f"The embedding laid out in the plane by UMAP{of_all}; distances between far groups mean little.", pictures=pictures)


def _genes_section(table: AnnData, spec: SliceSpec, receipt: Mapping[str, Any]) -> Section:
    """What became of the genes on the way to human ones: from the receipt if it says so, else by the shipped tables."""
    if "genes_audit" in receipt:
        audit = _plain(receipt["genes_audit"])
    else:
        _, found = map_to_human(slice_of(table, spec), load_gene_tables())
        audit = vars(found)
    words = {"n_genes": "genes of the slice", "n_detected": "of these detected", "n_mapped": "mapped to human genes",
             "n_detected_mapped": "detected and mapped", "n_merged": "summed into another", "n_dropped": "without a human gene",
             "share_of_counts_mapped": "share of counts mapped",
             "markers_lost": "markers lost", "unmapped_examples": "examples without a human gene", "release": "gene tables"}  # fmt: skip
    facts = {words.get(name, name.replace("_", " ")): value if np.size(value) else "none" for name, value in audit.items()}
    return Section("Genes", tables=[facts_table(facts, "Gene audit")])


def _receipt_section(table: AnnData) -> Section:
    """What made the embedding and the predictions, as stored in the file."""
    parts = {name: _plain(table.uns[name]) for name in table.uns if name == UNS_STOFM or name.startswith(f"{UNS_STOFM}_")}
    return Section("Receipt", "What made the embedding and the predictions, as the file carries it.", code=json.dumps(parts, indent=1, default=str))


def _found(value: Mapping[str, Any], name: str) -> Iterator[Any]:
    """Yield what stands under a name anywhere in a receipt: sections of a file have their own."""
    for key, inner in value.items():
        if key == name:
            yield inner
        elif isinstance(inner, Mapping):
            yield from _found(inner, name)


def _plain(value: Any) -> Any:
    """A value of `uns` as JSON has it; settings stored as JSON are opened, long arrays named by their shape."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, np.ndarray):
        if value.size > LONGEST_ARRAY:
            return f"{value.dtype} array of shape {value.shape}"
        return [_plain(one) for one in value.tolist()]
    if isinstance(value, str) and value[:1] == "{":
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value.item() if isinstance(value, np.generic) else None if pd.api.types.is_scalar(value) and pd.isna(value) else value
