"""What a slice holds and whether it can be used: one finding a subject, each with a verdict and, where there is one, the remedy.

`inspect_slice` tells the story. A subject that cannot be read is a finding too, so that the others are still looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from corpus.build_cost import BuildCost, build_cost
from corpus.gene_ids import GeneAudit, GeneTables, audit_genes, human_ids_of, require_mapped
from corpus.gene_vocab import GeneConfig, GeneVocab, TokenAudit, audit_tokens, merge_genes
from corpus.qc import Floors, QualityConfig, floors_of, for_corpus, is_far_away, obs_unit_of
from corpus.readers import read_table, slice_of, technology_of
from corpus.readers.controls import is_control_name
from corpus.readers.sections import FOV_COLUMNS, rows_of_section
from corpus.readers.table import declared_unit, find_coordinates, find_counts, find_ensembl_ids, find_labels, find_places, find_species, provenance_of
from corpus.slice import FloatArray, Slice, SliceSpec, StrArray, nearest_spacing, require_cells, require_coordinates, to_micrometres
from stofm.errors import BadSlice, StofmError

if TYPE_CHECKING:
    from anndata import AnnData

Verdict = Literal["ok", "warn", "fail"]
USUAL_PITCH_UM = {"cell": 10.0, "bead": 10.0, "spot": 100.0}  # from neighbour to neighbour, where a file does not say its scale
LARGEST_SHARE_SHARED = 0.01  # of cells at the place of another one
LEAST_SHARE_OF_COUNTS = 0.8
LEAST_MOLECULES = 20
MOST_CLASSES = 60  # of a column that may be a label


@dataclass(frozen=True)
class Finding:
    """One thing found in a slice.

    Attributes
    ----------
    subject : str
        What was looked at, in a word or two.
    verdict : {"ok", "warn", "fail"}
        Warned of: usable, but worth a look; failed: not usable as it is.
    found : str
        For people.
    fix : str
        A command's option, a setting or an act; "" where nothing is to be done.
    code : str
        Name of the fault in capitals, "" where there is none.
    values : {name: value}
        The numbers in `found`, for programs.
    """

    subject: str
    verdict: Verdict
    found: str
    fix: str = ""
    code: str = ""
    values: Mapping[str, object] = field(default_factory=dict)


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
    looks: dict[str, Callable[[], list[Finding]]] = {
        "technology": lambda: [technology_finding(technology)],
        "unit": lambda: [_unit(table, spec, technology)],
        "places": lambda: [place_finding(find_coordinates(table, spec.spatial_key), _value(findings, "um_per_unit"))],
        "fields of view": lambda: [_fields(table, spec)],
        "counts": lambda: _counts_and_genes(table, spec, genes),
        "labels": lambda: [_labels(table, spec)],
        "as a whole": lambda: _whole(table, spec, is_known_bad=worst(findings) == "fail"),
        "cost": lambda: [cost_finding(build_cost(_value(findings, "n_entries") or 0))],
    }
    for subject, look in looks.items():
        try:
            findings += look()
        except StofmError as error:
            findings.append(of_error(subject, error))
    return findings


def of_error(subject: str, error: StofmError) -> Finding:
    """Turn a refusal (what was found; what was expected. What to do.) into a finding."""
    message = str(error.args[0])
    found, _, fix = message.removesuffix(".").rpartition(". ")
    return Finding(subject, "fail", found or message, fix if found else "", error.code if isinstance(error, BadSlice) else type(error).__name__)


def worst(findings: Sequence[Finding]) -> Verdict:
    """Return the verdict on a slice: that of its worst finding."""
    return max((one.verdict for one in findings), key=("ok", "warn", "fail").index, default="ok")


def _value(findings: list[Finding], name: str) -> float | None:
    """A number that an earlier finding holds, if there is one."""
    return next((value for one in findings if isinstance(value := one.values.get(name), int | float)), None)


# From arrays to findings.


def file_finding(layout: str, n_cells: int, n_features: int) -> Finding:
    """Say what was read."""
    values = {"layout": layout, "n_cells": n_cells, "n_features": n_features}
    return Finding("file", "ok", f"read as {layout}: {n_cells:,} cells, {n_features:,} features", values=values)


def technology_finding(technology: str) -> Finding:
    """Say what was measured and whether a place is a cell."""
    values = {"technology": technology, "obs_unit": obs_unit_of(technology)}
    if technology == "unknown":
        return Finding(
            "technology", "warn", "not stated, so cells are assumed", "state it in uns['provenance']['technology'] of the file", values=values
        )
    if values["obs_unit"] == "spot":
        return Finding("technology", "warn", f"{technology}: a spot is a mixture of cells, and is read as if it were one",
                       "keep spots and single cells in separate corpora, unless a mixture is wanted", values=values)  # fmt: skip
    return Finding("technology", "ok", technology + (": a bead may touch several cells" if values["obs_unit"] == "bead" else ""), values=values)


def unit_finding(coords: FloatArray, *, declared: str | None, um_per_unit: float | None, usual: Floors, obs_unit: str) -> Finding:
    """Say how far neighbours are apart, (n, 2) coordinates in the file's unit, and whether that is micrometres."""
    spacing = nearest_spacing(coords)
    pitch = USUAL_PITCH_UM[obs_unit]
    guess = f"{pitch / spacing:.3g}" if spacing > 0 else "..."
    fix = f"if neighbouring {obs_unit}s are about {pitch:g} um apart, as is usual: --um-per-unit {guess} (setting `um_per_unit`)"
    try:
        _, factor = to_micrometres(coords, declared_unit=declared, um_per_unit=um_per_unit)
    except BadSlice as error:
        stated = f"coordinates are declared as {declared!r}" if declared else "coordinates declare no unit"
        return Finding("unit", "fail", f"{stated} and nearest {obs_unit}s are {spacing:.4g} apart (median); expected micrometres", fix, error.code,
                       {"spacing": spacing, "declared": declared})  # fmt: skip
    spacing_um, (low, high) = spacing * factor, usual.spacing_um
    how = (
        "as set"
        if um_per_unit is not None
        else f"the file says {declared!r}"
        if declared
        else "the file does not say, but the spacing is that of cells"
    )
    found = f"{factor:g} um per unit ({how}); nearest {obs_unit}s are {spacing_um:.3g} um apart (median)"
    values = {"um_per_unit": factor, "spacing_um": spacing_um, "declared": declared}
    if not low <= spacing_um <= high:
        return Finding("unit", "warn", f"{found}, usual are {low:g} to {high:g}", f"check the unit; {fix}", "UNIT_SUSPECT", values)
    return Finding("unit", "ok", found, values=values)


def place_finding(coords: FloatArray, um_per_unit: float | None) -> Finding:
    """Say how large the tissue is, where its scale is known, and which of (n, 2) places are missing, shared or far away."""
    is_placed = np.isfinite(coords).all(axis=1)
    placed = coords[is_placed]
    if not len(placed):
        require_coordinates(coords, len(coords))
    n_shared = len(placed) - len(np.unique(placed, axis=0))
    n_missing, n_far = int((~is_placed).sum()), int(is_far_away(placed).sum())
    width, height = (np.ptp(placed, axis=0) * (um_per_unit or np.nan) / 1000).tolist()
    parts = [f"tissue of {width:.3g} x {height:.3g} mm"] if um_per_unit else []
    parts += [f"{n_shared:,} cells share a place with another"]
    parts += [f"{n_missing:,} have none and would be dropped"] if n_missing else []
    parts += [f"{n_far:,} lie far away from all others"] if n_far else []
    values = {
        "width_mm": width if um_per_unit else None,
        "height_mm": height if um_per_unit else None,
        "n_shared": n_shared,
        "n_without_place": n_missing,
        "n_far_away": n_far,
    }
    if n_missing > 0.01 * len(coords):
        require_coordinates(coords, len(coords))
    if n_shared > LARGEST_SHARE_SHARED * len(coords):
        return Finding(
            "places", "warn", "; ".join(parts), "check that cells are not in the file twice, and that places are not rounded", values=values
        )
    return Finding("places", "warn" if n_missing or n_far else "ok", "; ".join(parts), values=values)


def count_finding(depth: FloatArray, n_genes: FloatArray, where: str) -> Finding:
    """Say where the counts are and how many a cell has: (n,) molecules, (n,) genes."""
    n_empty = int((depth == 0).sum())
    found = f"{where} holds raw counts: {np.median(depth):,.4g} molecules of {np.median(n_genes):,.4g} genes a cell (median)"
    found += f"; {n_empty:,} cells without any are dropped" if n_empty else ""
    values = {
        "counts_from": where,
        "n_entries": int(n_genes.sum()),
        "median_molecules": float(np.median(depth)),
        "median_genes": float(np.median(n_genes)),
        "n_empty": n_empty,
    }
    if np.median(depth) < LEAST_MOLECULES:
        return Finding("counts", "warn", found + "; that is little to go by", "merge small segments, or drop the poorest cells", values=values)
    return Finding("counts", "warn" if n_empty > 0.05 * len(depth) else "ok", found, values=values)


def control_finding(names: StrArray, share_of_counts: float) -> Finding:
    """Say which features are controls, and what share of all counts they had."""
    values = {"n_controls": len(names), "share_of_counts": share_of_counts}
    if not len(names):
        return Finding("controls", "ok", "no control or blank features", values=values)
    found = (
        f"{len(names)} control and blank features ({', '.join(names[:3])} ...) with {share_of_counts:.2%} of all counts; kept apart from the genes"
    )
    if share_of_counts > 0.05:
        return Finding("controls", "warn", found, "much background: look at the run's quality report", values=values)
    return Finding("controls", "ok", found, values=values)


def species_finding(species: str, *, setting: str, stated: object, has_ids: bool) -> Finding:
    """Say whose genes these are, and how that is known."""
    if setting != "auto" or has_ids or stated == species:
        how = "as set" if setting != "auto" else "by its Ensembl ids" if has_ids else "as the file states"
        return Finding("species", "ok", f"{species} ({how})", values={"species": species})
    return Finding("species", "ok", f"{species} (guessed from the spelling of its genes)", "if that is wrong: --species", values={"species": species})


def gene_finding(audit: GeneAudit, floors: GeneConfig) -> Finding:
    """Say how many genes and counts map to human genes."""
    try:
        require_mapped(audit, min_genes=floors.min_genes, min_share_of_genes=floors.min_share_of_genes)
    except BadSlice as error:
        return of_error("genes", error)
    found = f"{audit.n_mapped:,} of {audit.n_genes:,} genes map to human genes, with {audit.share_of_counts_mapped:.1%} of the counts"
    found += f"; {audit.n_merged:,} are summed into another" if audit.n_merged else ""
    found += f"; most counted of the others: {', '.join(audit.unmapped_examples[:4])}" if audit.unmapped_examples else ""
    found += f"; markers lost: {', '.join(audit.markers_lost)}" if audit.markers_lost else ""
    is_little = audit.share_of_counts_mapped < LEAST_SHARE_OF_COUNTS
    fix = "name newer tables with `genes.tables`, or correct the names" if is_little or audit.markers_lost else ""
    return Finding("genes", "warn" if fix else "ok", found, fix, values=asdict(audit))


def token_finding(audit: TokenAudit) -> Finding:
    """Say how many genes and counts the vocabulary has tokens for."""
    found = f"{audit.n_with_token:,} of these {audit.n_genes:,} human genes have a token, with {audit.share_of_counts_with_token:.1%} of their counts"
    found += f"; markers without one: {', '.join(audit.markers_without_token)}" if audit.markers_without_token else ""
    values = asdict(audit)
    if not audit.n_with_token:
        return Finding("vocabulary", "fail", found, "use a model or vocabulary for these genes", "VOCAB", values)
    if audit.share_of_counts_with_token < LEAST_SHARE_OF_COUNTS:
        return Finding("vocabulary", "warn", found, "a model of these genes would see more: build a corpus with slices like this one", values=values)
    return Finding("vocabulary", "ok", found, values=values)


def label_finding(labels: Mapping[str, StrArray], others: list[str]) -> Finding:
    """Say which labels, name -> (n,) str, were found, and which other columns may be some."""
    parts = []
    for name, column in labels.items():
        classes = np.unique(column[column != ""])
        n_missing = int((column == "").sum())
        shown = ", ".join(classes[:6].tolist()) + (" ..." if len(classes) > 6 else "")
        parts.append(f"{name}: {len(classes)} classes ({shown})" + (f", {n_missing:,} cells without" if n_missing else ""))
    values = {name: len(np.unique(column[column != ""])) for name, column in labels.items()}
    fix = f"if one of these is meant, name it with `labels`: {', '.join(others[:5])}" if others and not labels else ""
    return Finding("labels", "ok", "; ".join(parts) or "none found; needed only to fit or score heads", fix, values=values)


def cost_finding(cost: BuildCost) -> Finding:
    """Say what building a corpus of the slice takes."""
    found = f"about {_duration(cost.seconds)} on one core and {cost.memory_mb / 1024:.1f} GB of memory to bring it into a corpus (estimate)"
    return Finding("cost", "ok", found, values={"minutes": round(cost.seconds / 60, 2), "memory_mb": round(cost.memory_mb)})


# From a table to arrays.


def _unit(table: AnnData, spec: SliceSpec, technology: str) -> Finding:
    coords, unit = find_coordinates(table, spec.spatial_key), obs_unit_of(technology)
    return unit_finding(coords, declared=declared_unit(table.uns), um_per_unit=spec.um_per_unit, usual=floors_of(technology), obs_unit=unit)


def _fields(table: AnnData, spec: SliceSpec) -> Finding:
    rows_of_section(table, find_places(table, spec.spatial_key), spec)
    column = next((name for name in FOV_COLUMNS if name in table.obs), None)
    n_fields = int(table.obs[column].nunique()) if column else 0
    return Finding("fields of view", "ok", f"{n_fields} in obs[{column!r}], side by side" if column else "none named", values={"n_fields": n_fields})


def _counts_and_genes(table: AnnData, spec: SliceSpec, genes: Genes) -> list[Finding]:
    try:
        counts, var, where = find_counts(table, spec.counts_layer, np.ones(table.n_obs, dtype=bool))
    except BadSlice as error:
        usable = [name for name in table.layers if _holds_counts(table, name)]
        fault = of_error("counts", error)
        return [Finding("counts", "fail", fault.found, f"--counts-layer {usable[0]} (setting `counts_layer`)" if usable else fault.fix, fault.code)]
    names = var.index.to_numpy().astype(str)
    is_control = is_control_name(names)
    ids = find_ensembl_ids(var, spec.gene_id_column)
    stated = provenance_of(table.uns).get("species")
    species = find_species(spec.species, stated, ids, names)
    of_genes = counts[:, ~is_control]
    beside = np.asarray(table.uns.get("control_names", [])).astype(str).reshape(-1)  # where a reader has set controls apart
    of_controls = float(counts[:, is_control].sum()) + (float(table.obsm["controls"].sum()) if len(beside) else 0.0)
    depth = np.asarray(of_genes.sum(axis=1)).ravel()
    findings = [
        count_finding(depth, np.diff(of_genes.indptr), where),
        control_finding(np.concatenate([names[is_control], beside]), of_controls / max(of_controls + float(depth.sum()), 1.0)),
        species_finding(species, setting=spec.species, stated=stated, has_ids=bool((ids != "").any())),
    ]
    human = human_ids_of(names[~is_control], ids[~is_control], species, genes.tables)
    of_gene = np.asarray(of_genes.sum(axis=0)).ravel()
    config = GeneConfig()
    try:
        audit = audit_genes(names[~is_control], human, of_gene, species=species, release=genes.tables.release, markers=config.markers)
    except BadSlice as error:
        return [*findings, of_error("genes", error)]
    findings.append(gene_finding(audit, config))
    if genes.vocab is not None:
        merged, human_ids = merge_genes(of_genes, human)
        symbol_of = dict(zip(human.tolist(), names[~is_control].tolist(), strict=True))
        symbols = np.array([symbol_of[gene] for gene in human_ids.tolist()])
        findings.append(token_finding(audit_tokens(merged, human_ids, symbols, genes.vocab, config.markers)))
    return findings


def _holds_counts(table: AnnData, layer: str) -> bool:
    try:
        find_counts(table, layer, np.ones(table.n_obs, dtype=bool))
    except BadSlice:
        return False
    return True


def _labels(table: AnnData, spec: SliceSpec) -> Finding:
    found = find_labels(table, spec.labels)
    others = [
        str(name) for name in table.obs if name not in found and table.obs[name].dtype.kind not in "fiu" and 1 < table.obs[name].nunique() <= 60
    ]
    return label_finding(found, others)


def _whole(table: AnnData, spec: SliceSpec, *, is_known_bad: bool) -> list[Finding]:
    """Read the slice as every verb does: what was not seen above comes out here."""
    try:
        st_slice: Slice = slice_of(table, spec)
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


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
