"""What lies around a cell: means of what is visible, nothing of what is hidden, and empty surroundings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from short_training import losses_of
from synth import MOTIONS, random_record

from pretrain.config import SE2StageConfig
from pretrain.context import context_of_cells, own_of_cells
from pretrain.stages import se2_stage
from stofm.batch import SubSliceBatch, collate
from stofm.geometry import find_pairs
from stofm.se2_transformer import SE2Transformer, SE2TransformerConfig

REACH_UM, K = (20.0, 100.0), 4


def batch_of(*seeds: int, n_virtual: int = 3) -> SubSliceBatch:
    """Sub-slices of growing size with a few hidden cells."""
    records = [random_record(seed, 20 + 5 * seed, n_virtual=n_virtual) for seed in seeds]
    for seed, record in zip(seeds, records, strict=True):
        record["is_masked"] = np.random.default_rng(seed).random(20 + 5 * seed) < 0.2
        record["cell_embeddings"] = np.where(record["is_masked"][:, None], 0, record["cell_embeddings"])
    return collate(records)


def contexts(batch: SubSliceBatch) -> torch.Tensor:
    return context_of_cells(batch, find_pairs(batch, n_neighbors=K), REACH_UM)


def test_contexts_are_the_means_of_their_definition() -> None:
    batch = batch_of(1)
    found = contexts(batch).double()
    coords, embeddings = batch.coords_um[0].double(), batch.cell_embeddings[0].double()
    is_cell, is_virtual, is_masked = batch.is_cell[0], batch.is_virtual[0], batch.is_masked[0]
    middle = embeddings[is_virtual].mean(0)
    pairs = find_pairs(batch, n_neighbors=K)

    def of_neighbors(cell: int) -> torch.Tensor:
        near = torch.cat([pairs.second[pairs.first == cell], pairs.first[pairs.second == cell]])
        return embeddings[near[is_cell[near] & ~is_masked[near]]].mean(0) - middle

    def of_virtual(cell: int, reach: float) -> torch.Tensor:
        weights = torch.exp(-(coords[is_virtual] - coords[cell]).norm(dim=1) / reach)
        return (weights[:, None] * embeddings[is_virtual]).sum(0) / weights.sum() - middle

    cells, unit = is_cell.nonzero()[:, 0], (embeddings[is_virtual] - middle).norm(dim=1).square().mean().sqrt()
    around = torch.stack([of_neighbors(cell) for cell in cells])
    torch.testing.assert_close(found[:, 0], around / around.norm(dim=1).square().mean().sqrt(), atol=1e-5, rtol=0)
    for number, reach in enumerate(REACH_UM):
        around = torch.stack([of_virtual(cell, reach) for cell in cells])
        torch.testing.assert_close(found[:, 1 + number], around / unit, atol=1e-4, rtol=0)


def test_a_tissue_that_is_the_same_everywhere_has_hardly_a_context() -> None:
    """Virtual cells of different kinds at one place tell a cell nothing of where it is, and nothing is made of that."""
    record = random_record(1, 40, n_outside=0)
    record["virtual_coords_um"] = record["virtual_coords_um"].mean(axis=0) + 1e-3 * record["virtual_coords_um"]
    assert contexts(collate([record]))[:, 1:].abs().max() < 1e-3


def test_all_sub_slices_of_a_slice_are_measured_alike() -> None:
    """Two halves of a slice seen apart have the contexts that they have together, neighbours across the cut left aside."""
    record = random_record(1, 40, n_outside=0)
    whole = contexts(collate([record]))
    in_half = [{name: values[half] if len(values) == 40 else values for name, values in record.items()} for half in (slice(0, 20), slice(20, 40))]
    torch.testing.assert_close(contexts(collate(in_half))[:, 1:], whole[:, 1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("motion", MOTIONS)
def test_moving_the_tissue_changes_no_context(motion) -> None:
    batch = batch_of(1, 2)
    moved = MOTIONS[motion](batch.coords_um.double().numpy())
    assert torch.allclose(contexts(replace(batch, coords_um=torch.from_numpy(moved).float())), contexts(batch), atol=1e-4)


def test_each_sub_slice_of_a_batch_has_the_contexts_it_has_alone() -> None:
    together = contexts(batch_of(1, 3, 2))
    alone = torch.cat([contexts(batch_of(seed)) for seed in (1, 3, 2)])
    assert torch.allclose(together, alone, atol=1e-6)


def test_what_is_hidden_or_padding_is_in_no_context() -> None:
    batch = batch_of(1, 3)
    hidden = batch.is_masked | batch.is_padding
    other = replace(batch, cell_embeddings=torch.where(hidden[..., None], 7.0, batch.cell_embeddings))
    assert torch.equal(contexts(other), contexts(batch))
    assert torch.equal(own_of_cells(other), own_of_cells(batch))


def test_without_virtual_cells_or_neighbours_a_context_is_zero() -> None:
    assert not contexts(batch_of(1, n_virtual=0))[:, 1:].any()
    lonely = random_record(0, 1, n_virtual=1)
    assert not contexts(collate([lonely]))[:, 0].any()
    assert contexts(collate([lonely])).isfinite().all()


def test_own_embeddings_are_those_of_visible_cells_from_the_middle_of_the_slice() -> None:
    batch = batch_of(1, 3)
    is_visible, found = batch.is_cell & ~batch.is_masked, own_of_cells(batch)
    for b, one in enumerate(found.split(is_visible.sum(1).tolist())):
        own = batch.cell_embeddings[b, is_visible[b]] - batch.cell_embeddings[b, batch.is_virtual[b]].mean(0)
        torch.testing.assert_close(one, own / own.norm(dim=1).square().mean().sqrt(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("objective", ["context", "own"])
def test_the_objective_is_learned_and_can_be_left_out(objective: str) -> None:
    class OneView:
        def __len__(self) -> int:
            return 1

        def read(self, number: int) -> dict[str, np.ndarray]:
            return random_record(3, 40)

    def stage_of(weight: float):
        torch.manual_seed(0)
        transformer = SE2Transformer(SE2TransformerConfig(n_layers=1, n_neighbors=K, dropout=0.0))
        config = SE2StageConfig(**{"context_um": list(REACH_UM), f"{objective}_weight": weight})
        return se2_stage(config, transformer, OneView(), seed=0)

    stage = stage_of(1.0)
    batch = stage.micro_batch([(0, 0)])
    losses = losses_of(objective, stage, batch, n_steps=30, optimizer=torch.optim.AdamW)
    assert losses[-1] < 0.5 * losses[0]

    without = stage_of(0.0)
    assert set(without.model(batch)) == {"mcm", "pdr", "context", "own"} - {objective}
    assert not any(objective in name for name, _ in without.model.named_parameters())
