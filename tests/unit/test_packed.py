"""Encoders for inference: what plain layers give, within rounding, in a copy that leaves the encoder as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from published_checkpoint import without_levels
from torch import nn

from pretrain.lora import add_adapters
from stofm import cell_encoder
from stofm.cell_encoder import CellEncoder, CellEncoderConfig, embed_cells
from stofm.first_layer import FirstLayer
from stofm.gene_tokens import N_LEVELS, GeneTokens
from stofm.packed import PackedLinear, can_pack

CLS, EXACT = 21, {"atol": 2e-6, "rtol": 0}
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of PyTorch has no oneDNN")


def encoder_of(n_layers: int) -> CellEncoder:
    """With weights as wide as trained ones, so that norms and attention are far from doing nothing."""
    torch.manual_seed(0)
    made = CellEncoder.from_scratch(CellEncoderConfig(n_layers=n_layers, width=16, n_heads=2, ffn_dim=24), n_tokens=22, max_tokens=30).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


@pytest.fixture
def encoder() -> CellEncoder:
    return encoder_of(3)


@pytest.fixture
def tokens() -> GeneTokens:
    """Enough for a table of the first layer; cells of one gene and cells of all."""
    rng = np.random.default_rng(0)
    lengths = np.append(rng.integers(1, 20, 80), [1, 19])
    genes = np.concatenate([rng.permutation(np.arange(2, CLS))[:length] for length in lengths])
    return GeneTokens.of_lengths(genes.astype(np.uint16), lengths, rng.integers(1, N_LEVELS, len(genes)).astype(np.uint8))


def padded(tokens: GeneTokens) -> torch.Tensor:
    return torch.from_numpy(tokens.padded(np.arange(len(tokens.lengths)), cls_token=CLS))


@pytest.mark.parametrize("shape", [(1, 5), (7, 5), (2, 3, 5), (300, 5)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_packed_layer_gives_what_the_plain_one_gives(shape, bias):
    torch.manual_seed(0)
    plain, x = nn.Linear(5, 3, bias=bias), torch.randn(*shape)
    torch.testing.assert_close(PackedLinear(plain)(x), plain(x), **EXACT)
    torch.testing.assert_close(PackedLinear(plain, "gelu")(x), nn.functional.gelu(plain(x)), **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("reads_levels", [True, False])
@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_a_copy_for_inference_embeds_as_the_encoder_does(tokens, n_layers, reads_levels, attention, tmp_path):
    encoder = encoder_of(n_layers)
    if not reads_levels:
        without_levels(encoder).save(tmp_path / "encoder")
        encoder = CellEncoder.from_folder(tmp_path / "encoder").eval()
    encoder.bert.set_attn_implementation(attention)
    fast, cells = encoder.for_inference(tokens, cls_token=CLS), padded(tokens)
    assert {type(module) for module in fast.bert.modules() if isinstance(module, nn.Linear)} == {PackedLinear}
    assert isinstance(fast.first_layer, FirstLayer) == (n_layers > 1)
    torch.testing.assert_close(fast(cells), encoder(cells), **EXACT)
    torch.testing.assert_close(fast.hidden(cells), encoder.hidden(cells), atol=1e-5, rtol=0)


def test_few_cells_get_no_table(encoder, tokens):
    few = tokens.take(np.arange(3))
    fast = encoder.for_inference(few, cls_token=CLS)
    assert fast.first_layer is None
    with torch.no_grad():
        torch.testing.assert_close(fast(padded(few)), encoder(padded(few)), **EXACT)


def test_the_encoder_stays_as_it_was_and_weights_are_shared(encoder, tokens):
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    copy = encoder.for_inference(tokens, cls_token=CLS)
    assert encoder.first_layer is None
    assert not any(isinstance(module, PackedLinear) for module in encoder.modules())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert {value.data_ptr() for value in copy.parameters()} == {value.data_ptr() for value in encoder.parameters()}


def test_weights_that_were_trained_meanwhile_are_embedded_with(encoder, tokens):
    before = embed_cells(encoder, tokens, cls_token=CLS)
    with torch.no_grad():
        encoder.bert.encoder.layer[0].output.dense.weight.add_(0.1 * torch.randn(16, 24))
        encoder.bert.embeddings.word_embeddings.weight[5].add_(1.0)
    assert abs(embed_cells(encoder, tokens, cls_token=CLS) - before).max() > 1e-3


@torch.no_grad()
def test_adapters_go_on_working_among_packed_layers(encoder, tokens):
    add_adapters(encoder, rank=2, seed=0)
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            parameter.normal_()
    fast = encoder.for_inference(tokens, cls_token=CLS)
    assert fast.first_layer is None
    torch.testing.assert_close(fast(padded(tokens)), encoder(padded(tokens)), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_numbers_are_left_to_plain_layers(encoder, tokens, dtype):
    assert can_pack(encoder)
    assert encoder.to(dtype).for_inference(tokens, cls_token=CLS) is encoder


def test_without_onednn_the_encoder_is_its_own(encoder, tokens, monkeypatch):
    monkeypatch.setattr(cell_encoder, "can_pack", lambda _: False)
    assert encoder.for_inference(tokens, cls_token=CLS) is encoder
