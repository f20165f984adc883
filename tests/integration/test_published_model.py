"""A published checkpoint on the command line: imported, shown, used; and every kind of file that is no such checkpoint refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from cli import contents, refused, stofm, succeed
from published_checkpoint import Checkpoint, Code, edit, published_embeddings, published_tokens, random_weights, write_checkpoint
from safetensors.torch import load_file, save_file

from stofm.cell_encoder import CellEncoder

MAX_TOKENS = 12  # fewer than some cells have genes, so that cells are cut short


@pytest.fixture(scope="module")
def checkpoint(tiny_corpus, tmp_path_factory) -> Checkpoint:
    return write_checkpoint(tmp_path_factory.mktemp("published") / "ckpt", tiny_corpus.vocab, random_weights(), max_tokens=MAX_TOKENS)


@pytest.fixture(scope="module")
def model(checkpoint, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("models") / "published"
    succeed("model", "import", *checkpoint.words(), "--out", out)
    return out


@pytest.fixture
def copy(checkpoint, tmp_path) -> Checkpoint:
    return Checkpoint(shutil.copytree(checkpoint.folder, tmp_path / "copy"))


def test_embeddings_are_those_of_the_published_script(model, checkpoint, tiny_corpus, simulated_paths, tmp_path):
    succeed("embed", simulated_paths[0], "--model", model, "--out", tmp_path / "out", "--scheme", "published", "--keep-cell-embeddings")
    back = anndata.read_h5ad(tmp_path / "out" / simulated_paths[0].name)
    truth = tiny_corpus.truth("slice_0")
    counts = tiny_corpus.vocab.count(truth.counts, truth.human_ids).toarray()
    assert ((counts > 0).sum(axis=1) > MAX_TOKENS).any()
    assert (counts > 0).any(axis=1).all()
    tokens = published_tokens(counts, tiny_corpus.vocab, max_tokens=MAX_TOKENS)
    encoder = CellEncoder.from_folder(checkpoint.folder / "cell_encoder").eval()
    given = np.asarray(anndata.read_h5ad(simulated_paths[0]).obsm["spatial"], np.float64)
    expected = published_embeddings(tokens, given, encoder, random_weights())
    np.testing.assert_allclose(back.obsm["X_stofm"], expected, atol=2e-5, rtol=0)
    assert json.loads(back.uns["stofm"]["scales"])["scheme"] == "published"


def test_the_model_says_by_itself_what_scheme_it_needs(model, simulated_paths, tmp_path):
    for options in ([], ["--scheme", "published"]):
        succeed("embed", simulated_paths[2], "--model", model, "--out", tmp_path / f"out{len(options)}", *options)
    one, other = (anndata.read_h5ad(tmp_path / f"out{n}" / simulated_paths[2].name).obsm["X_stofm"] for n in (0, 2))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("scheme", ["tissue", "squares"])
def test_another_scheme_is_refused(model, simulated_paths, tmp_path, scheme):
    line = refused("embed", simulated_paths[0], "--model", model, "--out", tmp_path / "out", "--scheme", scheme)
    assert f"--scheme: found '{scheme}'; expected 'published', that of the model" in line
    assert not (tmp_path / "out").exists()


def test_show_says_what_a_published_model_promises(model):
    shown = succeed("model", "show", model)
    assert "turning or mirroring a slice changes its embeddings" in shown
    assert "4 layers, 8 heads, 16 radial functions" in shown
    assert "not known here; imported from " in shown
    assert "se2transformer.pth" in shown
    assert "not stated" in shown
    assert "slice, rotation" not in shown.replace("sub-slice, rotation", "")
    assert shown.count("  ok\n") == 7


def test_show_of_one_of_ours_for_programs(tiny_run, tiny_corpus):
    shown = json.loads(succeed("model", "show", tiny_run / "model", "--json"))
    assert (shown["format"], shown["scheme"], shown["licence"]) == ("stofm-model/1", "tissue", None)
    assert shown["vocabulary"] == {
        "n_genes": len(tiny_corpus.vocab.gene_ids),
        "n_ids": tiny_corpus.vocab.n_tokens,
        "sha256": tiny_corpus.vocab.sha256,
    }
    assert shown["se2_transformer"]["n_heads"] == 4
    assert shown["trained_on"]["corpus"] == tiny_corpus.corpus_id
    assert shown["self_test"]["passed"]
    assert "slice, rotation" in shown["self_test"]["changes"]


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["people", "programs"])
def test_a_failed_self_test_is_plain_to_see(checkpoint, copy, tmp_path, monkeypatch, options):
    succeed("model", "import", *copy.words(), "--out", tmp_path / "model")
    monkeypatch.setattr("downstream.self_test._turn", lambda coords: coords * 1.1)
    outcome = stofm("model", "show", tmp_path / "model", *options)
    assert outcome.code == 2
    assert "the self-test failed for sub-slice, rotation; expected changes of at most 0.0001" in outcome.stderr
    assert "FAILED" in outcome.stdout or '"passed": false' in outcome.stdout


def with_code(path: Path) -> None:
    torch.save({**torch.load(path, weights_only=True), "more": Code(path.parent / "executed")}, path)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_a_layer(path: Path) -> None:
    weights = load_file(path)
    save_file({name: value for name, value in weights.items() if "layer.1" not in name}, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("se2transformer.pth", with_code, "it asks for posix.mkdir to be executed, which was not done"),
        ("se2transformer.pth", truncated, "expected a whole file of weights"),
        ("se2transformer.pth", Path.unlink, "se2transformer.pth: no such file"),
        ("se2transformer.pth", lambda path: edit(path, lambda w: w.popitem()), "1 missing (encoder.layers.3.final_layer_norm.bias)"),
        ("config.json", lambda path: path.write_text('{"num_attention_heads": 4}'), "says num_attention_heads 4, the weights have 8"),
        ("config.json", Path.unlink, "config.json: found no JSON object"),
        ("cell_encoder/cell_proj.bin", with_code, "it asks for posix.mkdir to be executed"),
        ("cell_encoder/cell_proj.bin", Path.unlink, "Name a folder that holds both"),
        ("cell_encoder/cell_bert/model.safetensors", without_a_layer, "weights missing, misshapen or not finite ['encoder.layer.1."),
        ("cell_encoder/cell_bert/model.safetensors", truncated, "expected a BertModel folder"),
        ("tokens.csv", Path.unlink, "tokens.csv: no such file"),
        ("medians.csv", lambda path: path.write_text("gene,value\n"), "without a positive median"),
    ],
)
def test_what_is_no_whole_checkpoint_is_refused_and_nothing_written(copy, tmp_path, name, damage, said):
    damage(copy.folder / name)
    before = contents(copy.folder)
    line = refused("model", "import", *copy.words(), "--out", tmp_path / "model")
    assert said in line
    assert not (tmp_path / "model").exists()
    assert contents(copy.folder) == before
    assert not list(tmp_path.rglob("executed"))


def test_tables_without_medians_are_refused(copy, tmp_path):
    words = copy.words()[:-2]
    assert "vocabulary" in refused("model", "import", *words, "--out", tmp_path / "model")


def test_a_folder_that_is_no_model_cannot_be_shown(tmp_path):
    assert "no such folder; expected one of kind 'stofm-model/1'" in refused("model", "show", tmp_path / "none")


def test_a_tampered_model_is_refused(model, tmp_path, simulated_paths):
    folder = shutil.copytree(model, tmp_path / "model")
    raw = (folder / "se2_transformer.safetensors").read_bytes()
    (folder / "se2_transformer.safetensors").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    for words in (["model", "show", folder], ["embed", simulated_paths[0], "--model", folder, "--out", tmp_path / "out"]):
        assert "se2_transformer.safetensors is missing or changed" in refused(*words)
