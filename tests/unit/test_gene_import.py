"""A vocabulary made elsewhere keeps its tokens, from CSV and from dictionaries."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.sparse import csr_matrix

from corpus.gene_import import import_gene_vocab, vocab_of_tokens
from corpus.gene_vocab import GeneConfig, read_gene_vocab
from stofm.errors import ConfigError, FormatError

TOKENS = {"<pad>": 0, "<mask>": 1, "ENSG3": 2, "ENSG1": 3}
MEDIANS = {"ENSG1": 0.1, "ENSG3": 2.0, "ENSG9": 7.0}


def csv_of(path: Path, pairs: dict, header: str = "key,value") -> str:
    path.write_text("\n".join([header, *(f"{key},{value}" for key, value in pairs.items())]) + "\n")
    return str(path)


def pickle_of(path: Path, pairs: dict) -> str:
    path.with_suffix(".pkl").write_bytes(pickle.dumps(pairs))
    return str(path.with_suffix(".pkl"))


@pytest.mark.parametrize("store", [csv_of, pickle_of])
def test_dictionaries_keep_their_tokens_and_medians(tmp_path, store):
    files = {"vocabulary": TOKENS, "medians": MEDIANS, "symbols": {"ACTB": "ENSG1", "second": "ENSG1"}}
    vocab = import_gene_vocab(GeneConfig(**{name: store(tmp_path / f"{name}.csv", pairs) for name, pairs in files.items()}))
    assert (vocab.gene_ids.tolist(), vocab.medians.tolist(), vocab.symbols.tolist()) == (["ENSG3", "ENSG1"], [2.0, 0.1], ["", "ACTB"])
    assert (vocab.cls_token, vocab.n_tokens) == (4, 5)


def test_one_csv_may_have_its_rows_in_any_order_and_gaps(tmp_path):
    (tmp_path / "vocab.csv").write_text("gene_id,token,median,symbol\nENSG1,5,0.5,B\nENSG2,2,1,A\n")
    vocab = import_gene_vocab(GeneConfig(vocabulary=str(tmp_path / "vocab.csv")))
    assert vocab.gene_ids.tolist() == ["ENSG2", "<unused_3>", "<unused_4>", "ENSG1"]
    assert (vocab.symbols.tolist(), vocab.cls_token) == (["A", "", "", "B"], 6)


def test_special_tokens_among_the_genes_keep_their_place_and_are_in_no_cell(tmp_path):
    vocab = vocab_of_tokens({"<pad>": 0, "<mask>": 1, "<cls>": 2, "<eos>": 3, "ENSG1": 4, "ENSG2": 5}, {"ENSG1": 1.0, "ENSG2": 2.0}, {})
    assert (vocab.cls_token, vocab.n_tokens, vocab.column_of["ENSG1"]) == (2, 6, 2)
    of_vocab = vocab.count(csr_matrix(np.array([[3, 4, 5]])), np.array(["ENSG2", "", "ENSG1"]))
    assert of_vocab.toarray().tolist() == [[0, 0, 5, 3]]
    (tmp_path / "vocab.csv").write_text(vocab.to_csv())
    again = read_gene_vocab(tmp_path / "vocab.csv")
    assert (again.sha256, again.cls_token) == (vocab.sha256, 2)


@pytest.mark.parametrize("kind", ["csv", "pickle"])
def test_the_vocabulary_of_geneformer_comes_in_with_its_own_tokens(shared_data, tmp_path, kind):
    genes = shared_data / "genes"
    tables = {
        name: dict(list(csv.reader((genes / f"{name}.csv").read_text().splitlines()))[1:]) for name in ("geneformer_tokens", "geneformer_gene_median")
    }
    tokens = {gene: int(token) for gene, token in tables["geneformer_tokens"].items()}
    medians = {gene: float(median) for gene, median in tables["geneformer_gene_median"].items()}
    paths = [str(genes / "geneformer_tokens.csv"), str(genes / "geneformer_gene_median.csv")]
    if kind == "pickle":
        paths = [
            pickle_of(tmp_path / "tokens", tokens),
            pickle_of(tmp_path / "medians", {gene: np.float64(value) for gene, value in medians.items()}),
        ]
    vocab = import_gene_vocab(GeneConfig(vocabulary=paths[0], medians=paths[1], symbols=str(genes / "gene_name_id.csv")))
    found = {gene: column + 2 for gene, column in vocab.column_of.items()}
    assert found | {"<pad>": 0, "<mask>": 1} == tokens
    assert dict(zip(vocab.gene_ids.tolist(), vocab.medians.tolist(), strict=True)) == medians
    assert (vocab.cls_token, vocab.n_tokens) == (25_426, 25_427)
    assert vocab.symbols[vocab.column_of["ENSG00000075624"]] == "ACTB"


@pytest.mark.parametrize(
    ("tokens", "medians", "message"),
    [
        ({"<pad>": 1}, {}, "found token 1 for <pad>; expected 0"),
        ({"<mask>": 0, "ENSG1": 2}, MEDIANS, "found token 0 for <mask>; expected 1"),
        ({"ENSG1": 1}, MEDIANS, "expected whole numbers from 2 on, each once"),
        ({"ENSG1": 2, "ENSG3": 2}, MEDIANS, "expected whole numbers from 2 on, each once"),
        ({"ENSG1": 2.5}, MEDIANS, "expected whole numbers from 2 on, each once"),
        ({"ENSG1": float("nan")}, MEDIANS, "expected whole numbers from 2 on, each once"),
        ({}, MEDIANS, "expected whole numbers from 2 on, each once"),
        ({"ENSG1": 10**9}, MEDIANS, "found 1 tokens up to 1000000000; expected most numbers to be used"),
        ({"ENSG1": 2, "ENSG7": 3}, MEDIANS, r"found 2 genes, 1 without a positive median \['ENSG7'\]"),
        ({"ENSG1": 2}, {"ENSG1": 0.0}, "1 without a positive median"),
        ({"ENSG1": 2}, {"ENSG1": float("nan")}, "1 without a positive median"),
        ({"<cls>": 2}, {}, "found 0 genes"),
    ],
)
def test_what_makes_no_vocabulary_is_refused(tokens, medians, message):
    with pytest.raises(FormatError, match=message):
        vocab_of_tokens(tokens, medians, {})


def test_a_dictionary_of_tokens_needs_medians(tmp_path):
    with pytest.raises(ConfigError, match=r"says no medians; expected a table of them too\. Set `genes.medians`"):
        import_gene_vocab(GeneConfig(vocabulary=pickle_of(tmp_path / "tokens", TOKENS)))


def test_words_where_numbers_belong_are_refused(tmp_path):
    files = {"vocabulary": csv_of(tmp_path / "a.csv", TOKENS), "medians": csv_of(tmp_path / "b.csv", {"ENSG1": "high"})}
    with pytest.raises(FormatError, match=r"b\.csv: could not convert.*expected numbers in its second column. Correct `genes.medians`"):
        import_gene_vocab(GeneConfig(**files))


@pytest.mark.parametrize("settings", [{"medians": "m.csv"}, {"symbols": "s.csv"}, {"vocabulary": "v.csv", "symbols": "s.csv"}], ids=str)
def test_a_dictionary_alone_is_refused(settings):
    with pytest.raises(ValidationError, match="found a dictionary alone"):
        GeneConfig(**settings)
