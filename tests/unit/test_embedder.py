"""A model reads the genes of a new slice by the tables that its corpus was built with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from corpus.gene_ids import GeneTables, load_gene_tables
from corpus.readers import read_slice
from corpus.slice import SliceSpec
from downstream.embedding import embed_slice, load_embedder
from stofm.checkpoint import load_model, save_model
from stofm.errors import DataError

TEXTS = ["gene_vocab.csv", "scales.json", "README.md"]


def with_tables(model: Path, out: Path, tables: GeneTables | None) -> Path:
    """A copy of a model that carries these tables, or none, as the first models did."""
    found = load_model(model)
    texts = {name: (model / name).read_text() for name in TEXTS} | ({"gene_tables.json": tables.to_json()} if tables else {})
    save_model(out, found.cell_encoder, found.se2_transformer, texts=texts, trained_on={})
    return out


def test_a_model_carries_the_gene_tables_of_its_corpus(tiny_run, tiny_corpus):
    assert load_embedder(tiny_run / "model").tables.sha256 == tiny_corpus.gene_tables.sha256


def test_the_tables_that_a_model_carries_are_those_that_count(tiny_run, tiny_corpus, simulated_paths, tmp_path):
    without_orthologs = dataclasses.replace(tiny_corpus.gene_tables, human_of_mouse={})
    embedder = load_embedder(with_tables(tiny_run / "model", tmp_path / "model", without_orthologs))
    mouse = read_slice(SliceSpec(path=str(simulated_paths[1])))
    with pytest.raises(DataError, match="none of the 90 genes maps to a human Ensembl id as mouse genes"):
        embed_slice(mouse, embedder)


def test_a_model_without_tables_was_made_with_the_shipped_ones(tiny_run, tmp_path):
    embedder = load_embedder(with_tables(tiny_run / "model", tmp_path / "model", None))
    assert embedder.tables.sha256 == load_gene_tables().sha256
