"""Attention by the pair state: scores add up from layer to layer, and padding is never looked at."""

from __future__ import annotations

import pytest
import torch
from synth import pairs_of_tokens, random_record

from stofm.attention import PairStateAttention
from stofm.batch import collate
from stofm.geometry import find_pairs
from stofm.se2_transformer import SE2Transformer, SE2TransformerConfig

H, N, D = 4, 9, 32


@pytest.fixture
def attention() -> PairStateAttention:
    torch.manual_seed(0)
    module = PairStateAttention(D, H, dropout=0.5)
    torch.nn.init.normal_(module.q_proj.bias)
    return module.eval().requires_grad_(False)


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    cells, pair_state = torch.randn(2, N, D, generator=generator), torch.randn(2, H, N, N, generator=generator)
    pair_state[1, :, :, 6:] = -torch.inf  # the second sub-slice has six cells
    return cells, pair_state


def heads(projected: torch.Tensor) -> torch.Tensor:
    return projected.unflatten(-1, (H, -1)).transpose(1, 2)


def plain_scores(module: PairStateAttention, cells: torch.Tensor) -> torch.Tensor:
    """q k^T / sqrt(D / H), as the paper writes it."""
    q, k = heads(module.q_proj(cells)), heads(module.k_proj(cells))
    return torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5


def test_one_layer_is_the_plain_formula(attention, inputs):
    cells, before = inputs
    update, after = attention(cells, before)
    expected = before + plain_scores(attention, cells)
    torch.testing.assert_close(after, expected)
    mixed = torch.einsum("bhij,bhjd->bhid", expected.softmax(-1), heads(attention.v_proj(cells)))
    torch.testing.assert_close(update, attention.out_proj(mixed.transpose(1, 2).flatten(2)))


def test_padding_gets_no_weight(attention, inputs):
    cells, pair_state = inputs
    update, after = attention(cells, pair_state)
    cells = cells.clone()
    cells[1, 6:] = 1e3
    other_update, other_after = attention(cells, pair_state)
    assert torch.equal(update[1, :6], other_update[1, :6])
    assert torch.equal(after[1, :, :6], other_after[1, :, :6])
    assert (after[1, :, :, 6:] == -torch.inf).all()


def test_the_last_pair_state_is_the_pair_bias_plus_the_scores_of_all_layers():
    torch.manual_seed(0)
    model = SE2Transformer(SE2TransformerConfig(n_layers=3, n_heads=H, ffn_dim=32, n_radial=8)).eval().requires_grad_(False)
    seen: list[tuple[PairStateAttention, torch.Tensor]] = []
    for layer in model.layers:
        layer.self_attn.register_forward_pre_hook(lambda module, args: seen.append((module, args[0])))
    batch = collate([random_record(0), random_record(1, 15)])
    pairs = find_pairs(batch, n_neighbors=model.config.n_neighbors)
    wanted = pairs_of_tokens(batch)
    pair_repr = model(batch, pairs, wanted=wanted).pair_repr
    expected = model.pair_bias(batch, pairs).dense()
    for module, cells in seen:
        expected = expected + plain_scores(module, cells)
    assert len(seen) == 3
    b, i, j = wanted.T
    torch.testing.assert_close(pair_repr, expected[b, :, i, j], atol=1e-4, rtol=1e-4)


def test_dropout_acts_in_training_only(attention, inputs):
    torch.testing.assert_close(attention(*inputs)[0], attention(*inputs)[0], rtol=0, atol=0)
    attention.train()
    assert (attention(*inputs)[0] != attention(*inputs)[0]).any()
