"""Where an SE(2) transformer starts: a linear layer reads off a cell what it is, what its neighbours are and what the tissue is around it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from corpus.view import View
from pretrain.config import SE2StageConfig
from pretrain.context import context_of_cells, own_of_cells
from pretrain.objectives import SE2Objectives
from pretrain.se2_init import N_NEAR, N_TISSUE, fit_heads, nearest_basis, start_from_surroundings
from pretrain.stages import se2_stage
from stofm.batch import collate
from stofm.fields import CELL_EMBEDDINGS, EMBEDDING_DIM
from stofm.se2_transformer import SE2Transformer, SE2TransformerConfig


@pytest.fixture(scope="module")
def view(tiny_run: Path) -> View:
    return View(tiny_run / "views" / "embedded")


def started(view: View, **settings: int) -> SE2Transformer:
    torch.manual_seed(0)
    transformer = SE2Transformer(SE2TransformerConfig(**{"n_layers": 2, "n_heads": 8, "n_neighbors": 6, **settings})).eval()
    start_from_surroundings(transformer, view, seed=0)
    return transformer


def explained(cell_repr: torch.Tensor, wanted: torch.Tensor) -> float:
    """Share of the spread of `wanted`, (n, D), that a linear function of representations, (n, 256), tells."""
    representation, wanted = (x.numpy().astype(np.float64) - x.numpy().mean(axis=0) for x in (cell_repr, wanted))
    told = representation @ np.linalg.lstsq(representation, wanted, rcond=1e-4)[0]
    return 1 - float(((wanted - told) ** 2).sum() / (wanted**2).sum())


@torch.no_grad()
def test_a_cell_tells_what_it_is_what_its_neighbours_are_and_what_lies_around_it(view: View) -> None:
    transformer = started(view)
    of_records = [collate([view.read(number)]) for number in range(len(view))]
    told = torch.cat([transformer(batch).cell_repr[batch.is_cell] for batch in of_records])
    assert len(told) > EMBEDDING_DIM
    wanted = [context_of_cells(batch, transformer.find_pairs(batch), [500.0]) for batch in of_records]
    neighbors, tissue = torch.cat(wanted).unbind(1)
    assert explained(told, torch.cat([own_of_cells(batch) for batch in of_records])) > 0.95
    assert explained(told, neighbors) > 0.8
    assert explained(told, tissue) > 0.8


@torch.no_grad()
def test_the_second_layer_tells_the_mean_of_the_neighbours_means(view: View) -> None:
    batch = collate([view.read(0)])
    transformer = started(view)
    told = transformer(batch).cell_repr[batch.is_cell]
    _, i, j = transformer.find_pairs(batch).entries()
    is_near = batch.is_cell[0, i] & batch.is_cell[0, j]
    graph = torch.zeros(len(told), len(told))
    graph[i[is_near], j[is_near]] = 1
    n_own = EMBEDDING_DIM - 2 * N_NEAR - 4 * N_TISSUE
    mean, mean_of_means = told[:, n_own : n_own + N_NEAR], told[:, n_own + N_NEAR : n_own + 2 * N_NEAR]
    expected = graph @ mean / graph.sum(1, keepdim=True)
    alike = torch.nn.functional.cosine_similarity(expected - expected.mean(0), mean_of_means - mean_of_means.mean(0), dim=1)
    assert alike.median() > 0.95


@torch.no_grad()
def test_linear_heads_start_as_they_can_read(view: View) -> None:
    transformer = started(view)
    stage = se2_stage(SE2StageConfig(), transformer, view, seed=0)
    batch = stage.micro_batch([(0, number) for number in range(len(view))])
    counts, losses = batch.counts(), []
    for fit in (False, True):
        if fit:
            fit_heads(stage.model, view, seed=0)
            transformer.eval()
        losses.append({name: float(total) / counts[name] for name, total in stage.model(batch).items()})
    assert losses[1]["own"] < 0.3 < 0.9 < losses[0]["own"]
    assert losses[1]["context"] < 0.8 * losses[0]["context"]
    assert losses[1]["mcm"] == losses[0]["mcm"]


def test_a_model_without_linear_heads_has_none_to_fit(view: View) -> None:
    fit_heads(SE2Objectives.of(SE2StageConfig(context_weight=0, own_weight=0), started(view)), view, seed=0)


def test_nearest_basis_turns_axes_within_what_they_span() -> None:
    axes = torch.linalg.qr(torch.randn(12, 5, generator=torch.Generator().manual_seed(0)))[0]
    basis = nearest_basis(axes)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(5))
    torch.testing.assert_close(basis @ basis.mT, axes @ axes.mT)
    torch.testing.assert_close(nearest_basis(torch.eye(12)[:, [3, 1, 0, 4, 2]]), torch.eye(12)[:, :5])


@pytest.mark.parametrize("settings", [{"n_heads": 1}, {"n_heads": 64}, {"n_layers": 1}, {"n_layers": 4}])
def test_models_of_any_size_start_without_a_cell_like_another(view: View, settings: dict[str, int]) -> None:
    batch = collate([view.read(0)])
    with torch.no_grad():
        told = started(view, **settings)(batch).cell_repr[batch.is_cell]
    assert torch.isfinite(told).all()
    alike = torch.nn.functional.normalize(told - told.mean(0), dim=1)
    assert (alike @ alike.mT).fill_diagonal_(0).abs().mean() < 0.6


def test_cells_that_are_all_alike_leave_the_model_as_it_was(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    before = SE2Transformer(SE2TransformerConfig(n_layers=1, n_heads=8)).state_dict()
    record = {CELL_EMBEDDINGS: np.ones((5, EMBEDDING_DIM), np.float16)}
    monkeypatch.setattr(View, "read", lambda *_: record)
    after = started(view, n_layers=1).state_dict()
    assert all(torch.equal(values, after[name]) for name, values in before.items())
