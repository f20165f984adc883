"""Inspecting a slice: a subject that fails hides no other, on made-up and on real slices."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest
from scipy.sparse import csr_matrix

from corpus.findings import Finding, worst
from corpus.gene_ids import load_gene_tables
from corpus.gene_vocab import GeneVocab
from corpus.inspection import Genes, inspect_slice
from corpus.slice import SliceSpec

PIXELS = ["starmap_mpfc_BZ5", "starmap_mpfc_BZ9", "verafish_hippocampus", "visium_lymphnode"]
REAL = [*PIXELS, "dlpfc_151673", "dlpfc_151674", "dlpfc_Br8325ant_unlabelled", *(f"her2st_{patient}1" for patient in "ABCDEF"), "merfish_mpoa_bp021",
        "merfish_mpoa_bp026", "osmfish_ssctx", "pseudospot_merfish_bp021", "slideseq_cerebellum", "st_mob_rep11", "st_pdac_A", "visium_breast_pair",
        "visium_hcc1", "xenium_breast_bidcell", "xenium_breast_pair", "xenium_breast_rep1_pikachu", "xenium_breast_rep1_squirtle"]  # fmt: skip
SUBJECTS = ["file", "technology", "unit", "places", "fields of view", "counts", "controls", "species", "genes", "labels"]


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
    assert {"file", "technology", "species", "genes", "labels"} <= set(found)


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
