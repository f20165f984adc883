"""The cost model says what torch counts: operations of forward and backward passes, and the memory that gradients keep."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from synth import random_record
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretrain import cost
from pretrain.config import SE2StageConfig
from pretrain.objectives import EncoderObjectives
from pretrain.stages import se2_stage
from stofm.cell_encoder import CellEncoder, CellEncoderConfig
from stofm.se2_transformer import SE2Transformer, SE2TransformerConfig

ENCODER = CellEncoderConfig(n_layers=3, width=64, n_heads=4, ffn_dim=96)
N_IDS = 300


def added_product(state: tuple, first: tuple, second: tuple, **_: object) -> int:
    """Operations of ``baddbmm_``, of which torch's counter knows only the form that is not in place."""
    return 2 * first[0] * first[1] * first[2] * second[2]


def counted(forward: Callable[[], torch.Tensor]) -> cost.Flops:
    """Operations of a forward pass and its gradient, as torch counts them."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: added_product})
    with counter, sdpa_kernel(SDPBackend.MATH):
        loss = forward()
        before = counter.get_total_flops()
        loss.backward()
    return cost.Flops(before, counter.get_total_flops() - before)


def kept_bytes(forward: Callable[[], torch.Tensor], model: nn.Module) -> int:
    """Bytes of all arrays but weights that a forward pass keeps for its gradient."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in kept.values())


def tokens_of(n_cells: int, length: int) -> torch.Tensor:
    tokens = torch.randint(2, N_IDS - 1, (n_cells, length), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = N_IDS - 1
    return tokens


def encoder() -> CellEncoder:
    return CellEncoder.from_scratch(ENCODER, n_tokens=N_IDS, max_tokens=200)


def sub_slice_stage(config: SE2TransformerConfig, n_cells: int):
    """The stage of one sub-slice with 5 virtual cells, and its micro-batch."""
    record = random_record(0, n_cells, n_virtual=5)
    view = type("OneRecord", (), {"read": lambda *_: record, "__len__": lambda _: 1})()
    stage = se2_stage(SE2StageConfig(), SE2Transformer(config), view, seed=0)
    return stage, stage.micro_batch([(0, 0)])


def assert_alike(found: cost.Flops, expected: cost.Flops, *, within: float) -> None:
    assert found.forward == pytest.approx(expected.forward, rel=within)
    assert found.backward == pytest.approx(expected.backward, rel=within)


@pytest.mark.parametrize("at_cls", [True, False])
@pytest.mark.parametrize(("n_cells", "length"), [(3, 20), (2, 150)])
def test_operations_of_the_encoder_are_those_counted(n_cells, length, at_cls):
    model = encoder()
    expected = cost.encoder_flops(cost.encoder_config_of(model), np.full(n_cells, length), at_cls=at_cls)
    embed = model if at_cls else lambda tokens: model.embed(model.hidden(tokens)[:, 0])
    assert_alike(expected, counted(lambda: embed(tokens_of(n_cells, length)).sum()), within=0.01)


def test_operations_of_the_encoder_stage_are_those_counted():
    tokens = tokens_of(8, 40)
    is_hidden = torch.zeros_like(tokens, dtype=torch.bool)
    is_hidden[:, 3:9] = True
    batch = SimpleNamespace(tokens=tokens, is_hidden=is_hidden, hidden_tokens=tokens[is_hidden])
    model = EncoderObjectives(encoder(), temperature=0.05)
    expected = (
        cost.encoder_flops(ENCODER, np.full(8, 40), at_cls=False) + cost.gene_head_flops(ENCODER, n_hidden=48, n_ids=N_IDS) + cost.contrast_flops(4)
    )
    assert_alike(expected, counted(lambda: sum(model(batch).values())), within=0.01)


@pytest.mark.parametrize("n_cells", [60, 300])
def test_operations_of_the_se2_stage_are_those_counted(n_cells):
    config = SE2TransformerConfig(n_layers=2)
    stage, batch = sub_slice_stage(config, n_cells)
    expected = cost.transformer_flops(config, n_cells=n_cells, n_virtual=5) + cost.se2_head_flops(
        config, n_cells=n_cells, n_predicted=len(batch.predicted), n_pairs=len(batch.pairs), n_contexts=6
    )
    assert_alike(expected, counted(lambda: sum(stage.model(batch).values())), within=0.02)


def test_twice_the_cells_cost_twice_and_longer_cells_more_than_in_proportion():
    one, two = (cost.encoder_flops(ENCODER, np.full(n, 50)) for n in (1, 2))
    assert two == one * 2
    assert cost.encoder_flops(ENCODER, [100]).total > two.total


@pytest.mark.parametrize("at_cls", [True, False])
@pytest.mark.parametrize("length", [40, 160])
def test_what_the_encoder_keeps_for_gradients_is_foreseen(length, at_cls):
    model = encoder().train()
    found = kept_bytes(lambda: (model if at_cls else model.hidden)(tokens_of(16, length)), model)
    assert cost.encoder_activation_bytes(ENCODER, 16 * length, at_cls=at_cls) == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("n_cells", [100, 400])
def test_what_the_transformer_keeps_for_gradients_is_foreseen(n_cells):
    config = SE2TransformerConfig(n_layers=3)
    stage, batch = sub_slice_stage(config, n_cells)
    stage.model.train()
    state_and_gradient = 2 * 4 * config.n_heads * (n_cells + 5) ** 2  # kept by none, there all the time
    found = kept_bytes(lambda: sum(stage.model(batch).values()), stage.model) + state_and_gradient
    assert cost.transformer_activation_bytes(config, n_cells=n_cells, n_virtual=5, n_contexts=6) == pytest.approx(found, rel=0.1)


def test_parameters_are_counted_without_making_them():
    with torch.device("meta"):
        model = encoder()
    assert cost.n_parameters(model) == sum(parameter.numel() for parameter in encoder().parameters())
