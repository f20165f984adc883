"""The published formula, plainly written and ours, against outputs, losses and gradients of the published code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from published_model import PADDING_TYPE, Weights, our_input, our_losses, our_model, our_name, published_losses, published_model, random_weights
from safetensors.torch import load_file

FORWARD, RELATIVE = 2e-5, 1e-4  # as the folder's README asks


@pytest.fixture(scope="module")
def parity(shared_data: Path) -> dict[str, torch.Tensor]:
    folder = shared_data / "parity"
    if not folder.is_dir():
        pytest.skip(f"outputs of the published model: no folder {folder}")
    return load_file(folder / "model_forward.safetensors") | load_file(folder / "model_train.safetensors")


@pytest.fixture
def weights(parity) -> Weights:
    return {name.removeprefix("weights/"): value.clone().requires_grad_() for name, value in parity.items() if name.startswith("weights/")}


def of_forward(parity, is_there) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells, and pair representations of the first five rows with cells that are there."""
    both = is_there[:, :5, None] & is_there[:, None, :]
    return parity["forward/last_hidden_state"][is_there], parity["forward/pair_rep_rows_0_5"][both]


def assert_losses_and_gradients(mcm, pdr, gradients, parity) -> None:
    torch.testing.assert_close(mcm.reshape(1), parity["train/mcm_loss"], rtol=RELATIVE, atol=0)
    torch.testing.assert_close(pdr.reshape(1), parity["train/pdr_loss"], rtol=RELATIVE, atol=0)
    wanted = {name.removeprefix("train/grad/"): value for name, value in parity.items() if name.startswith("train/grad/")}
    errors = {name: float((gradients(name) - value).norm() / value.norm()) for name, value in wanted.items()}
    assert len(errors) == 15
    assert max(errors.values()) <= RELATIVE, errors


def test_the_plain_formula_gives_the_published_outputs(parity, weights):
    inputs = [parity[f"forward/{name}"] for name in ("token_embeddings", "distances", "token_types")]
    is_there = inputs[2] != PADDING_TYPE
    with torch.no_grad():
        cells, pair_state = published_model(weights, *inputs)
    pairs = pair_state.permute(0, 2, 3, 1)[:, :5][is_there[:, :5, None] & is_there[:, None, :]]
    for found, expected in zip((cells[is_there], pairs), of_forward(parity, is_there), strict=True):
        torch.testing.assert_close(found, expected, atol=FORWARD, rtol=0)


def test_the_plain_formula_gives_the_published_losses_and_gradients(parity, weights):
    out = published_model(weights, *(parity[f"train/{name}"] for name in ("token_embeddings", "distances", "token_types")))
    mcm, pdr = published_losses(weights, *out, parity["train/labels"], parity["train/pair_labels"])
    (mcm + pdr).backward()
    assert_losses_and_gradients(mcm, pdr, lambda name: weights[name].grad, parity)


@torch.no_grad()
def test_our_transformer_gives_the_published_outputs(parity, weights):
    batch, pairs = our_input(*(parity[f"forward/{name}"] for name in ("token_embeddings", "distances", "token_types")))
    is_there = ~batch.is_padding
    first_rows = (is_there[:, :5, None] & is_there[:, None, :]).nonzero()
    out = our_model(weights).transformer(batch, pairs, wanted=first_rows)
    for found, expected in zip((out.cell_repr[is_there], out.pair_repr), of_forward(parity, is_there), strict=True):
        torch.testing.assert_close(found, expected, atol=FORWARD, rtol=0)


def test_our_objectives_give_the_published_losses_and_gradients(parity, weights):
    model = our_model(weights)
    mcm, pdr = our_losses(model, *(parity[f"train/{name}"] for name in ("token_embeddings", "distances", "token_types", "labels", "pair_labels")))
    (mcm + pdr).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert_losses_and_gradients(mcm, pdr, lambda name: gradients[our_name(name)], parity)


@pytest.mark.parametrize("form", ["in_place", "concatenated"])
def test_every_gradient_is_that_of_the_plain_formula(parity, form):
    weights = random_weights(0)
    inputs = [parity[f"train/{name}"] for name in ("token_embeddings", "distances", "token_types", "labels", "pair_labels")]
    sum(published_losses(weights, *published_model(weights, *inputs[:3]), *inputs[3:])).backward()
    model = our_model(weights)
    model.transformer.form = form
    sum(our_losses(model, *inputs)).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    errors = {name: float((found.pop(our_name(name)) - one.grad).norm() / one.grad.norm()) for name, one in weights.items()}
    assert not found
    assert max(errors.values()) <= RELATIVE, errors
