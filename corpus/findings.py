"""Findings: what is said of each subject of a slice, from plain arrays: a verdict, what was found and, where there is one, the remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from corpus.build_cost import BuildCost
from corpus.gene_ids import GeneAudit, require_mapped
from corpus.gene_vocab import GeneConfig, TokenAudit
from corpus.qc import Floors, is_far_away, obs_unit_of
from corpus.slice import FloatArray, StrArray, nearest_spacing, require_coordinates, to_micrometres
from stofm.errors import BadSlice, StofmError

if TYPE_CHECKING:
    pass

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


def of_error(subject: str, error: StofmError) -> Finding:
    """Turn a refusal (what was found; what was expected. What to do.) into a finding."""
    message = str(error.args[0])
    found, _, fix = message.removesuffix(".").rpartition(". ")
    return Finding(subject, "fail", found or message, fix if found else "", error.code if isinstance(error, BadSlice) else type(error).__name__)


def worst(findings: Sequence[Finding]) -> Verdict:
    """Return the verdict on a slice: that of its worst finding."""
    return max((one.verdict for one in findings), key=("ok", "warn", "fail").index, default="ok")


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


def gene_finding(audit: GeneAudit, floors: GeneConfig, *, has_counts: bool = True) -> Finding:
    """Say how many genes map to human genes, and with what share of the counts, unless these could not be read."""
    try:
        require_mapped(audit, min_genes=floors.min_genes, min_share_of_genes=floors.min_share_of_genes)
    except BadSlice as error:
        return of_error("genes", error)
    found = f"{audit.n_mapped:,} of {audit.n_genes:,} genes map to human genes"
    found += f", with {audit.share_of_counts_mapped:.1%} of the counts" if has_counts else ""
    found += f"; {audit.n_merged:,} are summed into another" if audit.n_merged else ""
    found += f"; these do not: {', '.join(audit.unmapped_examples[:4])}{' ...' if audit.n_dropped > 4 else ''}" if audit.unmapped_examples else ""
    found += f"; markers lost: {', '.join(audit.markers_lost)}" if audit.markers_lost else ""
    is_little = has_counts and audit.share_of_counts_mapped < LEAST_SHARE_OF_COUNTS
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


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
