"""The fused pair state: rules from coordinates give what pairs give, between sub-slices of any size, and only in inference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from synth import pairs_of_tokens, random_record
from torch.nn.attention.flex_attention import flex_attention

from stofm import fused
from stofm.batch import SubSliceBatch, collate
from stofm.distance_bias import TABLE_ERROR
from stofm.fields import COORDS_UM, VIRTUAL_COORDS_UM
from stofm.fused import BLOCK, Fused, blocks_within, squared_reach
from stofm.geometry import find_pairs
from stofm.se2_transformer import SE2Transformer, SE2TransformerConfig

N_NEIGHBORS = 6
SIZES = {"n_layers": 2, "n_heads": 4, "ffn_dim": 32, "n_radial": 8, "n_neighbors": N_NEIGHBORS, "dropout": 0.0}
MOST = 2 * TABLE_ERROR  # of a representation


@pytest.fixture(scope="module")
def model() -> SE2Transformer:
    torch.manual_seed(0)
    return SE2Transformer(SE2TransformerConfig(**SIZES)).eval()


def read(model: SE2Transformer, batch: SubSliceBatch, form: str):
    model.form = form
    with torch.no_grad():
        return model(batch, wanted=pairs_of_tokens(batch))


def on_a_grid(seed: int):
    """Spots, where many cells tie for the last neighbour."""
    record = random_record(seed, 36)
    return {**record, COORDS_UM: 100 * np.stack(np.divmod(np.arange(36), 6), axis=1).astype(np.float32)}


def in_one_point(record):
    return {**record, **{name: np.zeros_like(record[name]) for name in (COORDS_UM, VIRTUAL_COORDS_UM)}}


BATCHES = {
    "one sub-slice": [random_record(0, 40)],
    "sub-slices of many sizes": [random_record(number, n_cells) for number, n_cells in enumerate((150, 1, 3, 130, 7))],
    "ends of sub-slices at ends of blocks": [random_record(number, n_cells, n_virtual=0) for number, n_cells in enumerate((128, 256, 128))],
    "no virtual cells": [random_record(0, 30, n_virtual=0)],
    "one cell": [random_record(0, 1, n_virtual=0)],
    "one cell and its virtual cells": [random_record(0, 1, n_virtual=2)],
    "ties on a grid": [on_a_grid(0), random_record(1, 20)],
    "all cells in one point": [in_one_point(random_record(0, 20))],
}


@pytest.mark.parametrize("records", BATCHES.values(), ids=BATCHES.keys())
def test_it_is_the_form_of_pairs_within_the_error_of_the_table(model, records):
    batch = collate(records)
    expected, found = (read(model, batch, form) for form in ("in_place", "fused"))
    torch.testing.assert_close(found.cell_repr, expected.cell_repr, atol=MOST, rtol=0)
    torch.testing.assert_close(found.pair_repr, expected.pair_repr, atol=MOST, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("records", BATCHES.values(), ids=BATCHES.keys())
def test_every_entry_of_the_bias_is_that_of_pairs(model, records):
    batch = collate(records)
    state = Fused(model.pair_bias, batch, N_NEIGHBORS, n_layers=1)
    token = torch.arange(state.n_tokens)
    found = state._bias(torch.arange(4)[:, None, None], token[:, None], token)  # (H, T, T)
    dense = model.pair_bias(batch, find_pairs(batch, n_neighbors=N_NEIGHBORS)).dense()
    sizes = (~batch.is_padding).sum(dim=1).tolist()
    for b, n in enumerate(sizes):
        here = slice(sum(sizes[:b]), sum(sizes[: b + 1]))
        torch.testing.assert_close(found[:, here, here], dense[b, :, :n, :n], atol=2 * TABLE_ERROR, rtol=0)


@pytest.mark.parametrize("sizes", [(1,), (128,), (129, 3), (500, 1, 1, 300), (20,) * 30])
def test_only_blocks_with_two_tokens_of_one_sub_slice_are_computed(sizes):
    sub_slice = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    n_blocks = 2 * -(-len(sub_slice) // BLOCK)
    mask = blocks_within(sub_slice, n_blocks * BLOCK)
    same = torch.zeros(n_blocks * BLOCK, n_blocks * BLOCK, dtype=torch.bool)
    same[: len(sub_slice), : len(sub_slice)] = sub_slice[:, None] == sub_slice
    has_two = same.view(n_blocks, BLOCK, n_blocks, BLOCK).any(dim=3).any(dim=1)
    assert torch.equal(mask.to_dense()[0, 0].bool(), has_two)


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_reaches_do_not_depend_on_how_many_rows_are_taken_at_a_time(rows, monkeypatch):
    batch = collate([random_record(0, 60)])
    arguments = (*batch.coords_um[0].T, batch.is_cell[0], N_NEIGHBORS)
    whole = squared_reach(*arguments)
    monkeypatch.setattr(fused, "ROWS_AT_A_TIME", rows)
    assert torch.equal(squared_reach(*arguments), whole)
    assert not whole[batch.is_virtual[0]].any()


def test_what_stands_in_padding_changes_nothing(model):
    batch = collate([random_record(0, 20), random_record(1, 50)])
    padding = batch.is_padding[..., None]
    dirty = replace(batch, cell_embeddings=batch.cell_embeddings.masked_fill(padding, 7.0), coords_um=batch.coords_um.masked_fill(padding, 5.0))
    assert torch.equal(read(model, batch, "fused").cell_repr, read(model, dirty, "fused").cell_repr)


def test_lower_precision_comes_close(model):
    batch = collate([random_record(0), random_record(1, 25)])
    exact = read(model, batch, "in_place")
    with torch.autocast("cpu", torch.bfloat16):
        near = read(model, batch, "fused")
    cosine = torch.nn.functional.cosine_similarity(near.cell_repr.float(), exact.cell_repr, dim=-1)[~batch.is_padding]
    assert cosine.min() > 0.999


def test_directions_and_fused_distances_go_together():
    torch.manual_seed(0)
    model = SE2Transformer(SE2TransformerConfig(**SIZES, geometry="directional")).eval()
    batch = collate([random_record(0, 20), random_record(1, 5)])
    expected, found = (read(model, batch, form) for form in ("in_place", "fused"))
    torch.testing.assert_close(found.cell_repr, expected.cell_repr, atol=MOST, rtol=0)


def test_it_refuses_gradients_and_dropout(model):
    model.form, batch = "fused", collate([random_record(0)])
    with pytest.raises(RuntimeError, match="neither gradients nor dropout"):
        model(batch)


def test_it_refuses_pairs_and_published_distances(model):
    model.form, batch = "fused", collate([random_record(0)])
    with torch.no_grad(), pytest.raises(RuntimeError, match="hand it none"):
        model(batch, find_pairs(batch, n_neighbors=N_NEIGHBORS))


def test_flex_attention_is_told_the_same(model, monkeypatch):
    monkeypatch.setattr(fused, "plain_attention", torch.compile(flex_attention, backend="eager", dynamic=False))
    batch = collate([random_record(number, n_cells) for number, n_cells in enumerate((150, 1, 70))])
    expected, found = (read(model, batch, form) for form in ("in_place", "fused"))
    torch.testing.assert_close(found.cell_repr, expected.cell_repr, atol=MOST, rtol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # by PyTorch's own compiler
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))])
def test_the_compiled_kernel_computes_the_same_and_is_made_once_for_sizes_alike(model, device, monkeypatch):
    monkeypatch.setattr(fused, "plain_attention", fused.compiled_attention())
    model = model.to(device)
    torch._dynamo.utils.counters.clear()
    for sizes in ((200, 90, 1), (300,), (130, 200, 20)):
        batch = collate([random_record(number, n_cells) for number, n_cells in enumerate(sizes)]).to(device)
        expected, found = (read(model, batch, form) for form in ("concatenated", "fused"))
        most = 10 * MOST if device == "cuda" else MOST  # products may be in TF32 there
        torch.testing.assert_close(found.cell_repr, expected.cell_repr, atol=most, rtol=0)
    model.to("cpu")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
