"""Inspecting a slice: every subject is looked at, whatever is wrong with the others, so that one run tells all there is to mend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix

from corpus.build_cost import build_cost
from corpus.findings import (
    MOST_CLASSES,
    Finding,
    control_finding,
    cost_finding,
    count_finding,
    file_finding,
    gene_finding,
    label_finding,
    of_error,
    place_finding,
    species_finding,
    technology_finding,
    token_finding,
    unit_finding,
    worst,
)
from corpus.gene_ids import GeneTables, audit_genes, human_ids_of
from corpus.gene_vocab import GeneConfig, GeneVocab, audit_tokens, merge_genes
from corpus.qc import QualityConfig, floors_of, for_corpus, obs_unit_of
from corpus.readers import read_table, slice_of, technology_of
from corpus.readers.controls import is_control_name
from corpus.readers.sections import FOV_COLUMNS, rows_of_section
from corpus.readers.table import declared_unit, find_coordinates, find_counts, find_ensembl_ids, find_labels, find_places, find_species, provenance_of
from corpus.slice import SliceSpec, require_cells
from stofm.errors import BadSlice, StofmError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


@dataclass(frozen=True, eq=False)
class Genes:
    """Against which genes slices are checked: the tables that name them and, if it is for a model or corpus, its vocabulary."""

    tables: GeneTables
    vocab: GeneVocab | None = None


def inspect_slice(spec: SliceSpec, genes: Genes) -> list[Finding]:
    """Look at everything in a slice that decides whether and how it can be used; what cannot be read is a finding too."""
    try:
        table = read_table(spec)
        require_cells(table.n_obs, table.n_vars)
        findings = [file_finding(technology_of(spec), table.n_obs, table.n_vars)]
    except StofmError as error:
        return [of_error("file", error)]
    technology = str(provenance_of(table.uns).get("technology", "unknown"))
    findings.append(technology_finding(technology))
    findings += _look("unit", lambda: [_unit(table, spec, technology)])
    findings += _look("places", lambda: [place_finding(find_coordinates(table, spec.spatial_key), _value(findings, "um_per_unit"))])
    findings += _look("fields of view", lambda: [_fields(table, spec)])
    counts, var, of_counts = _counts(table, spec)
    findings += of_counts
    findings += _look("genes", lambda: _genes(table, spec, counts, var, genes))
    findings += _look("labels", lambda: [_labels(table, spec)])
    findings += _look("as a whole", lambda: _whole(table, spec, is_known_bad=worst(findings) == "fail"))
    return findings if counts is None else [*findings, cost_finding(build_cost(counts.nnz))]


def _look(subject: str, at: Callable[[], list[Finding]]) -> list[Finding]:
    """What a look finds; if it is refused, that."""
    try:
        return at()
    except StofmError as error:
        return [of_error(subject, error)]


def _value(findings: Sequence[Finding], name: str) -> float | None:
    """A number that an earlier finding holds, if there is one."""
    return next((value for one in findings if isinstance(value := one.values.get(name), int | float)), None)


def _unit(table: AnnData, spec: SliceSpec, technology: str) -> Finding:
    coords, unit = find_coordinates(table, spec.spatial_key), obs_unit_of(technology)
    return unit_finding(coords, declared=declared_unit(table.uns), um_per_unit=spec.um_per_unit, usual=floors_of(technology), obs_unit=unit)


def _fields(table: AnnData, spec: SliceSpec) -> Finding:
    rows_of_section(table, find_places(table, spec.spatial_key), spec)
    column = next((name for name in FOV_COLUMNS if name in table.obs and table.obs[name].notna().any()), None)
    n_fields = int(table.obs[column].nunique()) if column else 0
    return Finding("fields of view", "ok", f"{n_fields} in obs[{column!r}], side by side" if column else "none named", values={"n_fields": n_fields})


def _counts(table: AnnData, spec: SliceSpec) -> tuple[csr_matrix | None, pd.DataFrame, list[Finding]]:
    """The counts, the table of their features, and what is to be said of both; no counts if there are none."""
    try:
        counts, var, where = find_counts(table, spec.counts_layer, np.ones(table.n_obs, dtype=bool))
    except BadSlice as error:
        fault, layers = of_error("counts", error), [name for name in table.layers if _holds_counts(table, name)]
        fix = f"--counts-layer {layers[0]} (setting `counts_layer`)" if layers else fault.fix
        return None, table.var, [Finding("counts", "fail", fault.found, fix, fault.code)]
    is_control = is_control_name(_names(var))
    depth, n_genes = np.asarray(counts[:, ~is_control].sum(axis=1)).ravel(), np.diff(counts[:, ~is_control].indptr)
    beside = np.asarray(table.uns.get("control_names", [])).astype(str).reshape(-1)  # where a reader has set controls apart
    of_controls = float(counts[:, is_control].sum()) + (float(table.obsm["controls"].sum()) if len(beside) else 0.0)
    controls = control_finding(np.concatenate([_names(var)[is_control], beside]), of_controls / max(of_controls + float(depth.sum()), 1.0))
    return counts, var, [count_finding(depth, n_genes, where), controls]


def _holds_counts(table: AnnData, layer: str) -> bool:
    try:
        find_counts(table, layer, np.ones(table.n_obs, dtype=bool))
    except BadSlice:
        return False
    return True


def _genes(table: AnnData, spec: SliceSpec, counts: csr_matrix | None, var: pd.DataFrame, genes: Genes) -> list[Finding]:
    is_gene = ~is_control_name(_names(var))
    names, ids = _names(var)[is_gene], find_ensembl_ids(var, spec.gene_id_column)[is_gene]
    stated, config = provenance_of(table.uns).get("species"), GeneConfig()
    species = find_species(spec.species, stated, ids, names)
    findings = [species_finding(species, setting=spec.species, stated=stated, has_ids=bool((ids != "").any()))]
    human = human_ids_of(names, ids, species, genes.tables)
    of_gene = np.ones(len(names)) if counts is None else np.asarray(counts[:, is_gene].sum(axis=0)).ravel()
    try:
        audit = audit_genes(names, human, of_gene, species=species, release=genes.tables.release, markers=config.markers)
    except BadSlice as error:
        return [*findings, of_error("genes", error)]
    findings.append(gene_finding(audit, config, has_counts=counts is not None))
    if genes.vocab is not None and counts is not None:
        merged, human_ids = merge_genes(counts[:, is_gene], human)
        symbol_of = dict(zip(human.tolist(), names.tolist(), strict=True))
        symbols = np.array([symbol_of[gene] for gene in human_ids.tolist()])
        findings.append(token_finding(audit_tokens(merged, human_ids, symbols, genes.vocab, config.markers)))
    return findings


def _names(var: pd.DataFrame) -> np.ndarray:
    return var.index.to_numpy().astype(str)


def _labels(table: AnnData, spec: SliceSpec) -> Finding:
    found, most = find_labels(table, spec.labels), min(MOST_CLASSES, table.n_obs // 5)
    n_classes = {str(name): table.obs[name].nunique() for name in table.obs if table.obs[name].dtype.kind not in "fiu"}
    return label_finding(found, [name for name, n in n_classes.items() if name not in found and 1 < n <= most])


def _whole(table: AnnData, spec: SliceSpec, *, is_known_bad: bool) -> list[Finding]:
    """Read the slice as every verb does: what was not seen before comes out here."""
    try:
        st_slice = slice_of(table, spec)
    except BadSlice as error:
        return [] if is_known_bad else [of_error("as a whole", error)]
    try:
        left = for_corpus(st_slice, QualityConfig())
    except BadSlice as error:
        refusal = of_error("in a corpus", error)
        return [Finding("in a corpus", "warn", f"`stofm build` would refuse it: {refusal.found}", refusal.fix, refusal.code)]
    dropped = "".join(f", {n:,} dropped ({reason})" for reason, n in left.dropped.items() if n)
    values = {"n_cells": left.n_cells, "dropped": dict(left.dropped)}
    return [Finding("in a corpus", "ok", f"{left.n_cells:,} of {table.n_obs:,} cells would be taken{dropped}", values=values)]
