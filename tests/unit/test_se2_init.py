"""Where an SE(2) transformer starts: a linear layer reads off a cell what it is, what its neighbours are and what the tissue is around it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from corpus.view import View
from pretrain.config import SE2StageConfig
from pretrain.context import context_of_cells, own_of_cells
from pretrain.objectives import SE2Objectives
from pretrain.se2_init import N_NEAR, N_TISSUE, alike_axes, fit_heads, nearest_basis, start_from_surroundings
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


def on_a_ring(n: int, n_neighbors: int) -> csr_matrix:
    """The mean over the cells on both sides, of cells on a ring."""
    steps = [step for step in range(-n_neighbors // 2, n_neighbors // 2 + 1) if step]
    rows = np.repeat(np.arange(n), len(steps))
    columns = (rows + np.tile(steps, n)) % n
    return csr_matrix((np.full(len(rows), 1 / len(steps)), (rows, columns)), shape=(n, n))


def centred(x: np.ndarray) -> np.ndarray:
    return x - x.mean(axis=0)


@pytest.mark.parametrize("seed", range(3))
def test_axes_are_those_that_neighbours_share_and_no_more(seed: int) -> None:
    """Two waves along a ring, weak beside what single cells differ in."""
    rng, n = np.random.default_rng(seed), 600
    turned = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    waves = np.stack([np.sin(2 * np.pi * np.arange(n) / n), np.cos(4 * np.pi * np.arange(n) / n)], axis=1)
    x = centred(waves @ turned[:2] + rng.normal(size=(n, 20)) @ np.diag(np.linspace(2, 0.5, 20)) @ turned)
    axes = alike_axes(x, on_a_ring(n, 16), rng)
    assert 2 <= len(axes) <= 3  # at times one more lies along chance
    unit = axes / np.linalg.norm(axes, axis=1, keepdims=True)
    np.testing.assert_allclose(unit @ unit.T, np.eye(len(axes)), atol=1e-9)
    assert np.linalg.norm(unit[:2] @ turned[:2].T, axis=1).min() > 0.8
    assert (np.diff(np.linalg.norm(axes, axis=1)) <= 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_cells_that_lie_by_chance_share_next_to_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = centred(rng.normal(size=(400, 20)))
    assert len(alike_axes(x, on_a_ring(400, 16), rng)) <= 3


def test_cells_without_neighbours_share_no_axis() -> None:
    assert alike_axes(centred(np.random.default_rng(0).normal(size=(30, 20))), csr_matrix((30, 30)), np.random.default_rng(0)).shape == (0, 20)
