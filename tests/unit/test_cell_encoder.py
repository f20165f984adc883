"""The cell encoder: unit vectors in the order of the cells, saved and loaded whole, and no pickled code run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from published_checkpoint import Code, without_levels
from safetensors.torch import load_file, save_file

from stofm.cell_encoder import CellEncoder, CellEncoderConfig, batches_by_length, embed_cells
from stofm.errors import CheckpointError
from stofm.gene_tokens import N_LEVELS, GeneTokens

CLS = 21


@pytest.fixture
def encoder() -> CellEncoder:
    torch.manual_seed(0)
    config = CellEncoderConfig(n_layers=1, width=16, n_heads=2, ffn_dim=16)
    return CellEncoder.from_scratch(config, n_tokens=22, max_tokens=30).eval()


@pytest.fixture
def tokens() -> GeneTokens:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 31, 40)
    levels = rng.integers(1, N_LEVELS, lengths.sum()).astype(np.uint8)
    return GeneTokens.of_lengths(rng.integers(2, CLS, lengths.sum()).astype(np.uint16), lengths, levels)


@pytest.fixture
def folder(encoder, tmp_path):
    encoder.save(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_embeddings_are_unit_vectors_in_the_order_of_the_cells(encoder, tokens):
    embeddings = embed_cells(encoder, tokens, cls_token=CLS)
    assert embeddings.shape == (40, 256)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    one_by_one = [embed_cells(encoder, tokens.take(np.array([cell])), cls_token=CLS)[0] for cell in range(40)]
    np.testing.assert_allclose(embeddings, one_by_one, atol=1e-6)


@pytest.mark.parametrize("tokens_per_batch", [1, 100, 65_536, None])
def test_batching_changes_nothing(encoder, tokens, tokens_per_batch):
    embeddings = embed_cells(encoder, tokens, cls_token=CLS, tokens_per_batch=tokens_per_batch)
    np.testing.assert_allclose(embeddings, embed_cells(encoder, tokens, cls_token=CLS, tokens_per_batch=300), atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_permuting_cells_permutes_embeddings(encoder, tokens, seed):
    order = np.random.default_rng(seed).permutation(40)
    permuted = embed_cells(encoder, tokens.take(order), cls_token=CLS, tokens_per_batch=100)
    np.testing.assert_allclose(permuted, embed_cells(encoder, tokens, cls_token=CLS, tokens_per_batch=100)[order], atol=1e-6)


def test_batches_hold_every_cell_once_and_keep_to_their_budget():
    lengths = np.random.default_rng(0).integers(1, 31, 200)
    batches = list(batches_by_length(lengths, 25))
    assert np.sort(np.concatenate(batches)).tolist() == list(range(200))
    assert all(len(cells) * lengths[cells].max() <= 25 or len(cells) == 1 for cells in batches)
    assert max(map(len, batches)) > 10


def test_sizes_follow_the_vocabulary(encoder):
    assert (encoder.n_tokens, encoder.max_tokens) == (22, 30)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_what_is_read_at_cls_is_what_all_states_hold_there(tokens, n_layers, attention):
    torch.manual_seed(0)
    deeper = CellEncoder.from_scratch(CellEncoderConfig(n_layers=n_layers, width=16, n_heads=2, ffn_dim=16), n_tokens=22, max_tokens=30).eval()
    deeper.bert.set_attn_implementation(attention)
    cells = torch.from_numpy(tokens.padded(np.arange(40), cls_token=CLS))
    torch.testing.assert_close(deeper.at_cls(cells), deeper.hidden(cells)[:, 0], atol=1e-5, rtol=1e-5)


def test_levels_are_read(encoder, tokens):
    without = GeneTokens(tokens.tokens, tokens.offsets)
    told, untold = (embed_cells(encoder, cells, cls_token=CLS) for cells in (tokens, without))
    assert np.abs(told - untold).max(axis=1).min() > 1e-4  # of random weights


def test_an_encoder_that_was_made_without_levels_reads_ranks_alone(encoder, tokens, tmp_path):
    without_levels(encoder).save(tmp_path / "old")
    again, without = CellEncoder.from_folder(tmp_path / "old").eval(), GeneTokens(tokens.tokens, tokens.offsets)
    assert not again.reads_levels
    assert embed_cells(again, tokens, cls_token=CLS).tobytes() == embed_cells(again, without, cls_token=CLS).tobytes()


def test_what_was_saved_is_loaded_to_the_bit(encoder, tokens, folder):
    again = CellEncoder.from_folder(folder).eval()
    assert embed_cells(again, tokens, cls_token=CLS).tobytes() == embed_cells(encoder, tokens, cls_token=CLS).tobytes()


def test_the_published_head_is_read(encoder, tokens, folder):
    (folder / "cell_proj.safetensors").unlink()
    torch.save(encoder.proj.state_dict(), folder / "cell_proj.bin")
    again = CellEncoder.from_folder(folder).eval()
    assert embed_cells(again, tokens, cls_token=CLS).tobytes() == embed_cells(encoder, tokens, cls_token=CLS).tobytes()


@pytest.mark.parametrize("name", ["cell_proj.bin", "cell_bert/pytorch_model.bin"])
def test_a_pickle_with_code_is_refused_and_not_executed(folder, tmp_path, name):
    (folder / ("cell_proj.safetensors" if name == "cell_proj.bin" else "cell_bert/model.safetensors")).unlink()
    torch.save({"weight": Code(tmp_path / "executed")}, folder / name)
    with pytest.raises(CheckpointError, match=rf"cell encoder .*{Path(name).name}: it asks for posix.mkdir to be executed, which was not done"):
        CellEncoder.from_folder(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "cell_proj.safetensors").unlink(), "Name a folder that holds both"),
        (lambda folder: shutil.rmtree(folder / "cell_bert"), "Name a folder that holds both"),
        (lambda folder: shutil.rmtree(folder), "Name a folder that holds both"),
        (lambda folder: (folder / "cell_bert" / "config.json").unlink(), "expected a BertModel folder"),
        (lambda folder: (folder / "cell_bert" / "config.json").write_text("{"), "expected a BertModel folder"),
        (lambda folder: (folder / "cell_bert" / "model.safetensors").unlink(), "expected a BertModel folder"),
        (lambda folder: (folder / "cell_bert" / "model.safetensors").write_bytes(b"\x10" * 50), "expected a BertModel folder"),
    ],
    ids=["head", "bert", "folder", "bert's config", "damaged config", "bert's weights", "damaged weights"],
)
def test_a_folder_with_something_missing_or_damaged_is_refused(folder, damage, said):
    damage(folder)
    with pytest.raises(CheckpointError, match=f"cell encoder .*{said}"):
        CellEncoder.from_folder(folder)


def rewritten(path, change) -> None:
    """Change the tensors of a safetensors file."""
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("change", [dict.pop, lambda weights, name: weights[name].fill_(torch.nan)], ids=["missing", "nan"])
def test_weights_of_an_encoder_that_are_missing_or_no_numbers_are_named(folder, change):
    rewritten(folder / "cell_bert" / "model.safetensors", lambda weights: change(weights, "encoder.layer.0.output.dense.bias"))
    with pytest.raises(CheckpointError, match=r"1 weights missing, misshapen or not finite \['encoder.layer.0.output.dense.bias'\]"):
        CellEncoder.from_folder(folder)


def test_weights_that_an_encoder_has_no_use_for_are_left_out_and_named(folder):
    rewritten(folder / "cell_bert" / "model.safetensors", lambda weights: weights.update({"pooler.dense.bias": torch.zeros(16)}))
    assert CellEncoder.from_folder(folder).left_out == ("pooler.dense.bias",)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "it ends too early"), (b"garbage", "no readable pickle"), (None, "found list; expected tensors with names")],
    ids=["empty", "garbage", "list"],
)
def test_a_head_that_is_none_is_refused(folder, content, said):
    (folder / "cell_proj.safetensors").unlink()
    torch.save([1], folder / "cell_proj.bin")
    if content is not None:
        (folder / "cell_proj.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"cell encoder .*cell_proj\.bin: .*{said}"):
        CellEncoder.from_folder(folder)


def test_a_head_of_another_width_is_refused(folder):
    wider = CellEncoder.from_scratch(CellEncoderConfig(n_layers=1, width=32, n_heads=2, ffn_dim=16), n_tokens=22, max_tokens=30)
    wider.save(folder.parent / "wider")
    shutil.copy(folder.parent / "wider" / "cell_proj.safetensors", folder)
    with pytest.raises(CheckpointError, match="size mismatch"):
        CellEncoder.from_folder(folder)
