"""Published weights become ours: sizes read from them, every fault named, the folder whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from published_checkpoint import SIZES, Checkpoint, as_safetensors, edit, far_reaching, random_weights, write_checkpoint
from published_model import our_input, published_model
from safetensors.torch import load_file, save_file

from corpus.gene_vocab import GeneConfig
from downstream.embedding import load_embedder
from downstream.model_import import import_published
from stofm.checkpoint import load_model
from stofm.errors import CheckpointError, ConfigError
from stofm.published import read_published


@pytest.fixture
def checkpoint(tiny_corpus, tmp_path) -> Checkpoint:
    return write_checkpoint(tmp_path / "published", tiny_corpus.vocab, random_weights())


def read(checkpoint: Checkpoint):
    return read_published(checkpoint.folder / "se2transformer.pth", checkpoint.folder / "config.json")


def bring_in(checkpoint: Checkpoint, out: Path, **options) -> Path:
    folder = checkpoint.folder
    genes = GeneConfig(vocabulary=str(folder / "tokens.csv"), medians=str(folder / "medians.csv"))
    return import_published(folder / "se2transformer.pth", folder / "config.json", folder / "cell_encoder", genes, out, **options)


def test_sizes_are_read_from_the_weights(checkpoint):
    (checkpoint.folder / "config.json").write_text("{}")
    config = read(checkpoint).config
    assert (config.scheme, config.n_layers, config.n_heads, config.n_radial, config.ffn_dim) == ("published", 4, 8, 16, 64)


@torch.no_grad()
def test_a_file_with_the_heads_of_pretraining_gives_the_same_model(checkpoint, tmp_path):
    plain = read(checkpoint).state_dict()
    heads = {"lm_head.0.weight": torch.ones(256, 256), "pair_head.2.bias": torch.ones(1)}
    torch.save(random_weights() | heads, checkpoint.folder / "se2transformer.pth")
    wrapped = read(checkpoint).state_dict()
    assert all(torch.equal(wrapped[name], value) for name, value in plain.items())


def test_safetensors_give_the_same_model(checkpoint):
    safe = as_safetensors(checkpoint.folder / "se2transformer.pth")
    ours = read_published(safe, checkpoint.folder / "config.json").state_dict()
    assert all(torch.equal(ours[name], value) for name, value in read(checkpoint).state_dict().items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("encoder.layers.1.fc1.bias"), r"1 missing \(encoder.layers.1.fc1.bias\)"),
        (lambda w: w.pop("gaussian.means.weight"), "no matrix 'gaussian.means.weight' among 74 weights"),
        (lambda w: w.update({"encoder.final_norm.bias": torch.zeros(256)}), r"1 surplus \(encoder.final_norm.bias\)"),
        (lambda w: w.update({"gaussian.stds.weight": torch.zeros(1, 7)}), r"1 of another shape \(gaussian.stds.weight\)"),
        (lambda w: w["embedding_layer.bias"].fill_(float("nan")), r"1 not finite \(embedding_layer.bias\)"),
        (lambda w: w.update({"embedding_layer.bias": torch.zeros(256, dtype=torch.int64)}), r"1 not finite \(embedding_layer.bias\)"),
        (lambda w: w.update({"embedding_layer.weight": torch.zeros(768, 256)}), "says embedding_dim 256, the weights have 768"),
        (lambda w: [w.pop(name) for name in list(w) if "layers.3" in name], "says num_hidden_layers 4, the weights have 3"),
        (lambda w: [w.pop(name) for name in list(w)[1:]], "expected a published SE"),
    ],
    ids=["missing", "size missing", "surplus", "shape", "nan", "integers", "width", "layer", "another model"],
)
def test_weights_that_do_not_fit_are_named(checkpoint, change, said):
    edit(checkpoint.folder / "se2transformer.pth", change)
    with pytest.raises(CheckpointError, match=rf"se2transformer\.pth: .*{said}"):
        read(checkpoint)


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        *(({key: size + 1}, f"says {key} {size + 1}, the weights have {size}") for key, size in SIZES.items()),
        ({"pre_layernorm": True}, "says pre_layernorm True, published checkpoints have False"),
        ({"activation_fn": "relu"}, "says activation_fn 'relu', published checkpoints have 'gelu'"),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
def test_a_configuration_that_says_something_else_is_refused(checkpoint, stated, said):
    (checkpoint.folder / "config.json").write_text(json.dumps(SIZES | stated))
    with pytest.raises(CheckpointError, match=said):
        read(checkpoint)


@pytest.mark.parametrize("text", [None, "{", "[1]"], ids=["missing", "broken", "list"])
def test_a_configuration_that_is_none_is_refused(checkpoint, text):
    (checkpoint.folder / "config.json").unlink()
    if text is not None:
        (checkpoint.folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: found no JSON object"):
        read(checkpoint)


def test_an_imported_model_says_what_it_was_made_from(checkpoint, tmp_path, tiny_corpus):
    model = load_model(bring_in(checkpoint, tmp_path / "model", licence="CC BY 4.0"))
    made_from = model.meta.trained_on["published_files"]
    assert {"se2transformer.pth", "config.json", "cell_encoder/cell_proj.bin", "cell_encoder/cell_bert/config.json"} <= set(made_from)
    assert model.meta.licence == "CC BY 4.0"
    assert "CC BY 4.0" in (tmp_path / "model" / "README.md").read_text()
    embedder = load_embedder(tmp_path / "model", device="cpu")
    assert (embedder.scales.scheme, embedder.scales.rank_value.max_tokens) == ("published", 70)
    assert embedder.vocab.gene_ids.tolist() == tiny_corpus.vocab.gene_ids.tolist()


def test_what_is_left_out_of_the_encoder_is_said(checkpoint, tmp_path):
    said: list[str] = []
    path = checkpoint.folder / "cell_encoder" / "cell_bert" / "model.safetensors"
    save_file(load_file(path) | {"pooler.dense.bias": torch.zeros(32)}, path, metadata={"format": "pt"})
    bring_in(checkpoint, tmp_path / "model", report=said.append)
    assert said == ["left out of the cell encoder: pooler.dense.bias"]


def test_a_vocabulary_of_another_encoder_is_refused(checkpoint, tmp_path):
    table = checkpoint.folder / "tokens.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(CheckpointError, match="Use the tables that it was trained with"):
        bring_in(checkpoint, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_folder_that_holds_something_else_is_not_replaced(checkpoint, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(ConfigError, match="files that SToFM did not write"):
        bring_in(checkpoint, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


@torch.no_grad()
def test_the_shared_published_weights_compute_the_published_function(shared_data, tmp_path):
    path = shared_data / "parity" / "model_forward.safetensors"
    if not path.is_file():
        pytest.skip(f"outputs of the published model: no file {path}")
    parity = load_file(path)
    weights = {name.removeprefix("weights/"): value for name, value in parity.items() if name.startswith("weights/")}
    torch.save(weights, tmp_path / "se2transformer.pth")
    (tmp_path / "config.json").write_text("{}")
    inputs = [parity[f"forward/{name}"] for name in ("token_embeddings", "distances", "token_types")]
    batch, pairs = our_input(*inputs)
    found = read_published(tmp_path / "se2transformer.pth", tmp_path / "config.json")(batch, pairs).cell_repr
    is_there = ~batch.is_padding
    torch.testing.assert_close(found[is_there], parity["forward/last_hidden_state"][is_there], atol=2e-5, rtol=0)
    torch.save(far_reaching(weights), tmp_path / "se2transformer.pth")
    found = read_published(tmp_path / "se2transformer.pth", tmp_path / "config.json")(batch, pairs).cell_repr
    torch.testing.assert_close(found[is_there], published_model(far_reaching(weights), *inputs)[0][is_there], atol=2e-5, rtol=0)
