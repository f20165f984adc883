"""Adapters start as nothing, are all that is trained, and merged they are part of the layers."""

from __future__ import annotations

import pytest
import torch
from synth import random_record
from torch import nn

from pretrain.lora import add_adapters, merge_adapters, save_adapters
from stofm.batch import collate
from stofm.cell_encoder import CellEncoder, CellEncoderConfig
from stofm.se2_transformer import SE2Transformer, SE2TransformerConfig

TOKENS = torch.tensor([[30, 2, 3, 4], [30, 5, 6, 0]])


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return CellEncoder.from_scratch(CellEncoderConfig(n_layers=1, width=16, n_heads=2, ffn_dim=16), n_tokens=31, max_tokens=8).eval()


def transformer() -> nn.Module:
    torch.manual_seed(0)
    return SE2Transformer(SE2TransformerConfig(n_layers=1, n_heads=4, n_neighbors=4)).eval()


BODIES = {
    "cell encoder": (encoder, lambda body: body(TOKENS)),
    "SE(2) transformer": (transformer, lambda body: body(collate([random_record(0)])).cell_repr),
}


@pytest.fixture(params=BODIES)
def body_and_output(request):
    make, output = BODIES[request.param]
    return make(), make, output


def trained(body: nn.Module, output) -> None:
    """A few steps on anything."""
    optimizer = torch.optim.SGD([parameter for parameter in body.parameters() if parameter.requires_grad], lr=0.1)
    for _ in range(3):
        output(body)[..., 0].square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_new_adapter_changes_nothing(body_and_output):
    body, _, output = body_and_output
    before = output(body)
    add_adapters(body, rank=2, seed=0)
    torch.testing.assert_close(output(body), before)


def test_only_adapters_are_trained(body_and_output):
    body, make, output = body_and_output
    add_adapters(body, rank=2, seed=0)
    assert {name.split(".")[-3] for name, parameter in body.named_parameters() if parameter.requires_grad} == {"lora_A", "lora_B"}
    trained(body, output)
    own = {name.replace(".base_layer", ""): value for name, value in body.state_dict().items() if "lora_" not in name}
    torch.testing.assert_close(own, dict(make().state_dict()), rtol=0, atol=0)


def test_merged_adapters_compute_the_same_in_a_body_of_its_own_shape(body_and_output):
    body, make, output = body_and_output
    before = output(body)
    add_adapters(body, rank=2, seed=0)
    trained(body, output)
    adapted = output(body)
    merge_adapters(body)
    torch.testing.assert_close(output(body), adapted)
    assert (adapted - before).abs().max() > 1e-3, "training changed something"
    fresh = make()
    fresh.load_state_dict(body.state_dict())
    torch.testing.assert_close(output(fresh), adapted)


def test_saved_adapters_are_those_that_peft_puts_on_the_base_model(body_and_output, tmp_path):
    from peft import PeftModel

    body, make, output = body_and_output
    adapted = add_adapters(body, rank=2, seed=0)
    trained(body, output)
    save_adapters(adapted, tmp_path / "adapters")
    base = make()
    PeftModel.from_pretrained(base, str(tmp_path / "adapters"))
    torch.testing.assert_close(output(base.eval()), output(body))
    assert {path.name for path in (tmp_path / "adapters").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
