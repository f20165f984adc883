"""Learning rates and parameter groups."""

from __future__ import annotations

from itertools import pairwise

import pytest
from torch import nn

from pretrain.config import OptimConfig
from pretrain.optim import learning_rate, make_optimizer, set_learning_rate

N = 200


def rates(**settings) -> list[float]:
    config = OptimConfig(lr=1e-3, warmup_share=0.1, **settings)
    return [learning_rate(config, step, N) for step in range(N)]


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_rate_rises_evenly_to_its_peak_and_ends_near_a_tenth(schedule):
    found = rates(schedule=schedule)
    assert found[:20] == pytest.approx([1e-3 * (step + 1) / 20 for step in range(20)])
    assert max(found) == pytest.approx(1e-3)
    assert found[-1] == pytest.approx(1e-4, rel=0.01)
    assert all(later <= earlier for earlier, later in pairwise(found[19:]))


def test_warm_up_stable_decay_stands_still_in_between():
    found = rates(schedule="wsd", decay_share=0.25)
    assert set(found[20:150]) == {1e-3}
    assert found[175] < found[150] < 1e-3


def test_every_trained_parameter_is_in_one_group_and_only_matrices_decay():
    model = nn.ModuleDict({"encoder": nn.Linear(3, 4), "head": nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2))})
    model["head"][0].bias.requires_grad_(False)
    optimizer = make_optimizer(model, OptimConfig(weight_decay=0.3), lr_shares={"encoder": 0.1})
    found = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(one) for one in found} == {id(one) for one in model.parameters() if one.requires_grad}
    assert len(found) == 5
    for group in optimizer.param_groups:
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["weight_decay"] > 0}
    set_learning_rate(optimizer, 1.0)
    of_encoder = {id(parameter) for parameter in model["encoder"].parameters()}
    assert {(id(one) in of_encoder, group["lr"]) for group in optimizer.param_groups for one in group["params"]} == {(True, 0.1), (False, 1.0)}
