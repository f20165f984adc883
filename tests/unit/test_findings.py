"""Findings: each subject says what it found and gives the remedy, and a subject that fails hides no other."""

from __future__ import annotations

import numpy as np
import pytest
from synth import spot_grid

from corpus.findings import (
    Finding,
    control_finding,
    count_finding,
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
from corpus.gene_ids import GeneAudit
from corpus.gene_vocab import GeneConfig, TokenAudit
from corpus.qc import floors_of
from stofm.errors import BadSlice


def grid(pitch: float) -> np.ndarray:
    return spot_grid(10, 12) * pitch / 100


@pytest.mark.parametrize(
    ("pitch", "declared", "setting", "technology", "verdict", "words"),
    [
        (10, "um", None, "MERFISH", "ok", "1 um per unit (the file says 'um'); nearest cells are 10 um apart"),
        (10, None, None, "unknown", "ok", "the file does not say, but the spacing is that of cells"),
        (160, "pixel", None, "STARmap", "fail", "declared as 'pixel' and nearest cells are 160 apart"),
        (160, "pixel", 0.0625, "STARmap", "ok", "0.0625 um per unit (as set); nearest cells are 10 um apart"),
        (138, None, None, "10x Visium", "fail", "declare no unit and nearest spots are 138 apart"),
        (0.01, "um", None, "Xenium", "warn", "nearest cells are 0.01 um apart (median), usual are 2 to 40"),
        (10, "mm", None, "Xenium", "warn", "1000 um per unit"),
    ],
)
def test_the_unit_is_known_or_the_scale_to_set_is_named(pitch, declared, setting, technology, verdict, words):
    obs_unit = "spot" if "Visium" in technology else "cell"
    found = unit_finding(grid(pitch), declared=declared, um_per_unit=setting, usual=floors_of(technology), obs_unit=obs_unit)
    assert found.verdict == verdict
    assert words in found.found
    assert (f"--um-per-unit {(100 if obs_unit == 'spot' else 10) / pitch:.3g}" in found.fix) == (verdict != "ok")


@pytest.mark.parametrize(
    ("spoil", "verdict", "words"),
    [
        (lambda one: None, "ok", "tissue of 0.115 x 0.0779 mm; 0 cells share a place with another"),
        (lambda one: one.__setitem__(slice(0, 5), one[50]), "warn", "5 cells share a place"),
        (lambda one: one.__setitem__((0, 1), np.nan), "warn", "1 have none and would be dropped"),
        (lambda one: one.__setitem__((0, 1), 1e6), "warn", "1 lie far away"),
    ],
    ids=["good", "shared", "missing", "far away"],
)
def test_places_that_are_shared_missing_or_far_away_are_counted(spoil, verdict, words):
    coords = grid(10)
    spoil(coords)
    found = place_finding(coords, 1.0)
    assert found.verdict == verdict
    assert words in found.found


def test_without_a_scale_the_tissue_has_no_size():
    found = place_finding(grid(10), None)
    assert "mm" not in found.found
    assert found.values["width_mm"] is None


def test_too_many_cells_without_a_place_are_a_fault():
    coords = grid(10)
    coords[:10] = np.nan
    with pytest.raises(BadSlice, match="NaN or infinity in 10 cells"):
        place_finding(coords, 1.0)


AUDIT = GeneAudit(100, 90, 80, 75, 2, 20, 0.9, (), ("a", "b"), "release")


@pytest.mark.parametrize(
    ("found", "verdict", "words"),
    [
        (technology_finding("10x Visium"), "warn", "a spot is a mixture of cells"),
        (technology_finding("Slide-seqV2"), "ok", "a bead may touch several cells"),
        (technology_finding("unknown"), "warn", "not stated"),
        (technology_finding("Xenium"), "ok", "Xenium"),
        (count_finding(np.full(9, 50.0), np.full(9, 20), "X"), "ok", "X holds raw counts: 50 molecules of 20 genes a cell (median)"),
        (count_finding(np.full(9, 5.0), np.full(9, 4), "X"), "warn", "that is little to go by"),
        (count_finding(np.array([0.0] * 2 + [50] * 8), np.full(10, 20), "X"), "warn", "2 cells without any are dropped"),
        (control_finding(np.array([], dtype=str), 0.0), "ok", "no control or blank features"),
        (control_finding(np.array(["Blank-1", "Blank-2"]), 0.001), "ok", "2 control and blank features (Blank-1, Blank-2 ...) with 0.10% of all"),
        (control_finding(np.array(["Blank-1"]), 0.2), "warn", "20.00% of all counts"),
        (species_finding("mouse", setting="auto", stated=None, has_ids=False), "ok", "mouse (guessed from the spelling of its genes)"),
        (species_finding("mouse", setting="auto", stated="mouse", has_ids=False), "ok", "mouse (as the file states)"),
        (gene_finding(AUDIT, GeneConfig()), "ok", "80 of 100 genes map to human genes, with 90.0% of the counts; 2 are summed into another"),
        (gene_finding(AUDIT, GeneConfig(min_genes=76)), "fail", "75 of 90 genes with counts map to human genes"),
        (token_finding(TokenAudit(50, 40, 0.95, ("INS",))), "ok", "40 of these 50 human genes have a token, with 95.0% of their counts; markers"),
        (token_finding(TokenAudit(50, 4, 0.2, ())), "warn", "20.0% of their counts"),
        (token_finding(TokenAudit(50, 0, 0.0, ())), "fail", "0 of these 50"),
        (label_finding({"region": np.array(["a", "b", "", "b"])}, []), "ok", "region: 2 classes (a, b), 1 cells without"),
        (label_finding({}, ["layer"]), "ok", "none found"),
    ],
)
def test_a_finding_says_what_it_means(found, verdict, words):
    assert found.verdict == verdict
    assert words in found.found
    assert found.fix or verdict != "fail"


def test_a_refusal_becomes_what_was_found_and_what_to_do():
    found = of_error("counts", BadSlice("NOT_COUNTS", "found 0.5 in X; expected counts (1. 2. 3). Set `counts_layer`."))
    assert found == Finding("counts", "fail", "found 0.5 in X; expected counts (1. 2. 3)", "Set `counts_layer`", "NOT_COUNTS")


@pytest.mark.parametrize(("verdicts", "expected"), [([], "ok"), (["ok", "warn"], "warn"), (["warn", "fail", "ok"], "fail")])
def test_the_worst_finding_is_the_verdict(verdicts, expected):
    assert worst([Finding("x", verdict, "") for verdict in verdicts]) == expected
