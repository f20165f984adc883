"""Findings: each subject says what it found and gives the remedy, and a subject that fails hides no other."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest
from scipy.sparse import csr_matrix
from synth import spot_grid

from corpus.findings import (
    Finding,
    Genes,
    control_finding,
    count_finding,
    gene_finding,
    inspect_slice,
    label_finding,
    of_error,
    place_finding,
    species_finding,
    technology_finding,
    token_finding,
    unit_finding,
    worst,
)
from corpus.gene_ids import GeneAudit, load_gene_tables
from corpus.gene_vocab import GeneConfig, GeneVocab, TokenAudit
from corpus.qc import floors_of
from corpus.slice import SliceSpec
from stofm.errors import BadSlice

PIXELS = ["starmap_mpfc_BZ5", "starmap_mpfc_BZ9", "verafish_hippocampus", "visium_lymphnode"]
REAL = [*PIXELS, "dlpfc_151673", "dlpfc_151674", "dlpfc_Br8325ant_unlabelled", *(f"her2st_{patient}1" for patient in "ABCDEF"), "merfish_mpoa_bp021",
        "merfish_mpoa_bp026", "osmfish_ssctx", "pseudospot_merfish_bp021", "slideseq_cerebellum", "st_mob_rep11", "st_pdac_A", "visium_breast_pair",
        "visium_hcc1", "xenium_breast_bidcell", "xenium_breast_pair", "xenium_breast_rep1_pikachu", "xenium_breast_rep1_squirtle"]  # fmt: skip
SUBJECTS = ["file", "technology", "unit", "places", "fields of view", "counts", "controls", "species", "genes", "labels"]


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


@pytest.fixture(scope="module")
def genes() -> Genes:
    return Genes(load_gene_tables())


def by_subject(findings: list[Finding]) -> dict[str, Finding]:
    return {one.subject: one for one in findings}


def spoilt(path: Path, out: Path, spoil) -> SliceSpec:
    table = anndata.read_h5ad(path)
    spoil(table)
    table.write_h5ad(out / "slice.h5ad")
    return SliceSpec(path=str(out / "slice.h5ad"))


def test_a_good_slice_has_every_subject_and_no_fault(simulated_paths, genes):
    found = by_subject(inspect_slice(SliceSpec(path=str(simulated_paths[0])), genes))
    assert set(SUBJECTS) <= set(found)
    assert worst(list(found.values())) != "fail"
    assert found["file"].values["n_cells"] == 400
    assert found["in a corpus"].values["n_cells"] + sum(found["in a corpus"].values["dropped"].values()) == 400
    assert found["cost"].values["memory_mb"] > 0


def halve(one: anndata.AnnData) -> None:
    one.X.data *= 0.5


def move_to_layer(one: anndata.AnnData) -> None:
    one.layers["umi"] = one.X.copy()
    halve(one)


def put_fields_on_each_other(one: anndata.AnnData) -> None:
    one.obs["fov"] = [str(number % 3) for number in range(one.n_obs)]


def rename_genes(one: anndata.AnnData) -> None:
    one.var_names = one.var_names + "_x"


def give_a_control_an_id(one: anndata.AnnData) -> None:
    one.var_names = ["Blank-1", *one.var_names[1:]]
    one.var["ensembl_id"] = ["ENSG00000075624"] + [""] * (one.n_vars - 1)


FAULTS = {
    "halved counts": (halve, "counts", "NOT_COUNTS", "counts_layer"),
    "counts in a layer": (move_to_layer, "counts", "NOT_COUNTS", "--counts-layer umi"),
    "no places": (lambda one: one.obsm.clear(), "unit", "NO_COORDS", "spatial_key"),
    "fields on each other": (put_fields_on_each_other, "fields of view", "FOV_OVERLAP", "global"),
    "unknown genes": (rename_genes, "genes", "VOCAB", "gene_id_column"),
    "a control with an id": (give_a_control_an_id, "as a whole", "CONTROL_IS_GENE", "Correct its name or id"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_with_its_remedy_and_the_rest_is_still_looked_at(name, simulated_paths, genes, tmp_path):
    spoil, subject, code, fix = FAULTS[name]
    findings = inspect_slice(spoilt(simulated_paths[0], tmp_path, spoil), genes)
    found = by_subject(findings)
    assert (found[subject].verdict, found[subject].code) == ("fail", code)
    assert fix in found[subject].fix
    assert {"file", "technology", "labels", "cost"} <= set(found)


def test_controls_among_the_features_are_named_and_leave_the_genes_alone(simulated_paths, genes, tmp_path):
    table = anndata.read_h5ad(simulated_paths[0])
    usual = by_subject(inspect_slice(SliceSpec(path=str(simulated_paths[0])), genes))
    blanks = anndata.AnnData(csr_matrix(np.ones((400, 2), table.X.dtype)), obs=table.obs[[]])
    blanks.var_names = ["Blank-1", "NegPrb2"]
    both = anndata.concat([table, blanks], axis=1, merge="first", uns_merge="first")
    both.write_h5ad(tmp_path / "slice_0.h5ad")
    found = by_subject(inspect_slice(SliceSpec(path=str(tmp_path / "slice_0.h5ad")), genes))
    assert found["controls"].values["n_controls"] == 2
    assert found["genes"].found == usual["genes"].found


def test_a_vocabulary_adds_what_has_a_token(simulated_paths, tiny_corpus):
    few = tiny_corpus.vocab.gene_ids[:5]
    vocab = GeneVocab(few, np.ones(5), np.full(5, ""))
    found = by_subject(inspect_slice(SliceSpec(path=str(simulated_paths[0])), Genes(tiny_corpus.gene_tables, vocab)))
    assert found["vocabulary"].values["n_with_token"] == 5 - np.isin(few, tiny_corpus.truth("slice_0").human_ids, invert=True).sum()
    whole = by_subject(inspect_slice(SliceSpec(path=str(simulated_paths[0])), Genes(tiny_corpus.gene_tables, tiny_corpus.vocab)))
    assert whole["vocabulary"].values["share_of_counts_with_token"] == 1.0


@pytest.mark.parametrize("name", REAL)
def test_of_a_real_slice_all_is_found_and_only_an_unknown_scale_is_a_fault(name, shared_data, genes):
    findings = inspect_slice(SliceSpec(path=str(shared_data / "data" / f"{name}.h5ad")), genes)
    found = by_subject(findings)
    assert set(SUBJECTS) <= set(found)
    assert [one.subject for one in findings if one.verdict == "fail"] == (["unit"] if name in PIXELS else [])
