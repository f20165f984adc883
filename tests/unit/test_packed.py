"""Packed layers: what plain ones give, within rounding, in a copy that leaves the module as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pretrain.lora import add_adapters
from stofm import cell_encoder
from stofm.cell_encoder import CellEncoder, CellEncoderConfig, embed_cells
from stofm.gene_tokens import GeneTokens
from stofm.packed import PackedLinear, can_pack, packed

CLS, EXACT = 21, {"atol": 2e-6, "rtol": 0}
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of PyTorch has no oneDNN")


@pytest.fixture
def encoder() -> CellEncoder:
    torch.manual_seed(0)
    return CellEncoder.from_scratch(CellEncoderConfig(n_layers=2, width=16, n_heads=2, ffn_dim=24), n_tokens=22, max_tokens=30).eval()


def padded_tokens() -> torch.Tensor:
    tokens = GeneTokens.of_lengths(torch.arange(2, 20).numpy().astype("uint16"), torch.tensor([3, 1, 14]).numpy())
    return torch.from_numpy(tokens.padded(torch.arange(3).numpy(), cls_token=CLS))


@pytest.mark.parametrize("shape", [(1, 5), (7, 5), (2, 3, 5), (300, 5)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_packed_layer_gives_what_the_plain_one_gives(shape, bias):
    torch.manual_seed(0)
    plain, x = nn.Linear(5, 3, bias=bias), torch.randn(*shape)
    torch.testing.assert_close(PackedLinear(plain)(x), plain(x), **EXACT)
    torch.testing.assert_close(PackedLinear(plain, "gelu")(x), nn.functional.gelu(plain(x)), **EXACT)


@torch.no_grad()
def test_an_encoder_for_inference_gives_the_same_and_has_no_plain_layer_left(encoder):
    fast, tokens = encoder.for_inference(), padded_tokens()
    assert {type(module) for module in fast.modules() if isinstance(module, nn.Linear)} == {PackedLinear}
    torch.testing.assert_close(fast(tokens), encoder(tokens), **EXACT)
    torch.testing.assert_close(fast.hidden(tokens), encoder.hidden(tokens), **EXACT)


def test_the_module_stays_as_it_was_and_weights_are_shared(encoder):
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    copy = packed(encoder)
    assert not any(isinstance(module, PackedLinear) for module in encoder.modules())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert {name: value.data_ptr() for name, value in copy.named_parameters()} == {
        name: value.data_ptr() for name, value in encoder.named_parameters()
    }


def test_weights_that_were_trained_meanwhile_are_embedded_with(encoder):
    tokens = GeneTokens.of_lengths(torch.arange(2, 20).numpy().astype("uint16"), torch.tensor([3, 1, 14]).numpy())
    before = embed_cells(encoder, tokens, cls_token=CLS)
    with torch.no_grad():
        encoder.bert.encoder.layer[0].output.dense.weight.add_(0.1 * torch.randn(16, 24))
    assert abs(embed_cells(encoder, tokens, cls_token=CLS) - before).max() > 1e-3


@torch.no_grad()
def test_adapters_go_on_working_around_packed_layers(encoder):
    add_adapters(encoder, rank=2, seed=0)
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            parameter.normal_()
    tokens = padded_tokens()
    torch.testing.assert_close(encoder.for_inference()(tokens), encoder(tokens), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_numbers_are_left_to_plain_layers(encoder, dtype):
    assert can_pack(encoder)
    assert encoder.to(dtype).for_inference() is encoder


def test_without_onednn_the_encoder_is_its_own(encoder, monkeypatch):
    monkeypatch.setattr(cell_encoder, "can_pack", lambda _: False)
    assert encoder.for_inference() is encoder
