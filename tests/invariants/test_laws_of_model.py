"""Laws of the model: turning, order, padding and batching change nothing, and what is hidden stays hidden."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from synth import MOTIONS, pairs_of_tokens, random_cells, random_record, record_of, spot_grid

from corpus.view import View
from pretrain.config import SE2StageConfig
from pretrain.masking import mask_sub_slice
from pretrain.stages import se2_stage
from stofm.batch import SubSliceBatch, collate
from stofm.fields import CELL_EMBEDDINGS, COORDS_UM, VIRTUAL_COORDS_UM, VIRTUAL_EMBEDDINGS
from stofm.se2_transformer import SE2Transformer, SE2TransformerConfig, SubSliceRepr

CONFIG = SE2TransformerConfig(n_layers=2, n_heads=4, ffn_dim=32, n_radial=8, n_neighbors=6)
SIZES = (40, 25, 3)  # cells of the sub-slices of the batch; the second is a spot grid, full of ties


@pytest.fixture(scope="module")
def model() -> SE2Transformer:
    """Weights away from their start, so that no constant is zero by chance."""
    torch.manual_seed(0)
    transformer = SE2Transformer(CONFIG).eval().requires_grad_(False)
    for parameter in transformer.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    return transformer


@pytest.fixture
def batch() -> SubSliceBatch:
    records = [random_record(seed, n_cells) for seed, n_cells in enumerate(SIZES)]
    records[1][COORDS_UM] = spot_grid(5, 5).astype(np.float32)
    return collate([{**record, "is_masked": np.arange(n) % 5 == 0} for record, n in zip(records, SIZES, strict=True)])


def assert_same_repr(batch: SubSliceBatch, one: SubSliceRepr, other: SubSliceRepr, *, atol: float = 1e-4) -> None:
    is_there = ~batch.is_padding
    torch.testing.assert_close(one.cell_repr[is_there], other.cell_repr[is_there], atol=atol, rtol=0)
    torch.testing.assert_close(one.pair_repr, other.pair_repr, atol=10 * atol, rtol=0)


def read(model: SE2Transformer, batch: SubSliceBatch, wanted: torch.Tensor | None = None) -> SubSliceRepr:
    """Representations of all cells, and of all pairs of them."""
    return model(batch, wanted=pairs_of_tokens(batch) if wanted is None else wanted)


@pytest.mark.parametrize("motion", MOTIONS.values(), ids=MOTIONS.keys())
def test_turning_shifting_and_mirroring_change_nothing(model, batch, motion):
    moved = torch.from_numpy(motion(batch.coords_um.double().numpy()).astype(np.float32))
    assert_same_repr(batch, read(model, batch), read(model, replace(batch, coords_um=moved)))


def test_stretching_does_change_the_representations(model, batch):
    stretched = model(replace(batch, coords_um=batch.coords_um * torch.tensor([1.5, 1.0]))).cell_repr
    assert (model(batch).cell_repr - stretched).abs().max() > 1e-2


@pytest.mark.parametrize("seed", range(3))
def test_permuting_cells_permutes_representations(model, batch, seed):
    order = torch.randperm(batch.is_padding.shape[1], generator=torch.Generator().manual_seed(seed))
    permuted = SubSliceBatch(*(getattr(batch, name)[:, order] for name in ("cell_embeddings", "coords_um", "is_virtual", "is_padding", "is_masked")))
    wanted = pairs_of_tokens(permuted)
    out = read(model, batch, torch.stack([wanted[:, 0], order[wanted[:, 1]], order[wanted[:, 2]]], dim=1))
    assert_same_repr(permuted, read(model, permuted, wanted), SubSliceRepr(out.cell_repr[:, order], out.pair_repr))


@pytest.mark.parametrize("b", range(len(SIZES)))
def test_padding_and_batching_change_nothing(model, batch, b):
    n = SIZES[b] + 3
    alone = SubSliceBatch(
        *(getattr(batch, name)[b : b + 1, :n] for name in ("cell_embeddings", "coords_um", "is_virtual", "is_padding", "is_masked"))
    )
    wanted = pairs_of_tokens(alone)
    out = read(model, batch, wanted + torch.tensor([b, 0, 0]))
    assert_same_repr(alone, read(model, alone, wanted), SubSliceRepr(out.cell_repr[b : b + 1, :n], out.pair_repr))


def test_what_stands_in_padding_changes_nothing(model, batch):
    padding = batch.is_padding[..., None]
    dirty = replace(batch, cell_embeddings=batch.cell_embeddings.masked_fill(padding, 7.0), coords_um=batch.coords_um.masked_fill(padding, 5.0))
    assert_same_repr(batch, read(model, batch), read(model, dirty), atol=0)


def test_the_input_of_a_masked_cell_cannot_leak(model, batch):
    noise = torch.randn(batch.cell_embeddings.shape, generator=torch.Generator().manual_seed(0)) * 100
    out, other = (
        read(model, batch),
        read(model, replace(batch, cell_embeddings=torch.where(batch.is_masked[..., None], noise, batch.cell_embeddings))),
    )
    assert torch.equal(out.cell_repr, other.cell_repr)
    assert torch.equal(out.pair_repr, other.pair_repr)


def test_the_input_of_a_cell_that_is_not_masked_is_read(model, batch):
    embeddings = batch.cell_embeddings.clone()
    embeddings[0, 1] = -embeddings[0, 1]
    changed = (model(batch).cell_repr - model(replace(batch, cell_embeddings=embeddings)).cell_repr).abs().amax(dim=(1, 2))
    assert changed[0] > 1e-2
    assert changed[1:].max() == 0


def test_virtual_cells_are_neither_masked_nor_predicted_nor_moved(tiny_run):
    view = View(tiny_run / "views" / "embedded")
    stage = se2_stage(SE2StageConfig(mask_rate=0.5, keep_rate=0.4), SE2Transformer(CONFIG), view, seed=0)
    batch = stage.micro_batch([(epoch, unit) for epoch in range(2) for unit in range(len(view))])
    assert batch.seen.is_virtual.any()
    assert not (batch.seen.is_masked & ~batch.seen.is_cell).any()
    assert batch.seen.is_cell[tuple(batch.predicted.T)].all()
    b, i, j = batch.pairs.T
    assert batch.seen.is_cell[b, i].all()
    assert batch.seen.is_cell[b, j].all()


@pytest.mark.parametrize("seed", range(4))
def test_a_hidden_embedding_is_in_nothing_that_the_model_sees(seed):
    coords, embeddings, of_cell = random_cells(seed, 70)

    def seen(embeddings):
        record = record_of(coords, embeddings, of_cell, n_cells=50)
        return mask_sub_slice(record, SE2StageConfig(), n_neighbors=6, rng=np.random.default_rng(seed)).seen

    before = seen(embeddings)
    hidden = np.flatnonzero(before["is_masked"])
    other = embeddings.copy()
    other[hidden] = np.random.default_rng(99).normal(size=(len(hidden), 256)) * 0.1
    after = seen(other)
    assert np.abs(record_of(coords, other, of_cell)[VIRTUAL_EMBEDDINGS] - record_of(coords, embeddings, of_cell)[VIRTUAL_EMBEDDINGS]).max() > 1e-3
    np.testing.assert_array_equal(after["is_masked"], before["is_masked"])
    np.testing.assert_array_equal(after[CELL_EMBEDDINGS], before[CELL_EMBEDDINGS])
    np.testing.assert_array_equal(after[COORDS_UM], before[COORDS_UM])
    np.testing.assert_array_equal(after[VIRTUAL_COORDS_UM], before[VIRTUAL_COORDS_UM])
    np.testing.assert_allclose(after[VIRTUAL_EMBEDDINGS], before[VIRTUAL_EMBEDDINGS], atol=1e-6)  # means are stored in float32


@pytest.mark.parametrize("seed", range(4))
def test_the_true_place_of_a_moved_cell_is_in_nothing_that_the_model_sees(seed):
    coords, embeddings, of_cell = random_cells(seed, 70)
    record = record_of(coords, embeddings, of_cell, n_cells=50)
    one = mask_sub_slice(record, SE2StageConfig(), n_neighbors=6, rng=np.random.default_rng(seed)).seen
    is_moved = np.concatenate([(one[COORDS_UM] != record[COORDS_UM]).any(axis=1), np.zeros(20, bool)])
    unmoved_means = [coords[(of_cell == v) & ~is_moved].mean(axis=0) for v in range(3)]
    np.testing.assert_allclose(one[VIRTUAL_COORDS_UM], unmoved_means, atol=1e-3)
