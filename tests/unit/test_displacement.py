"""The denoising objective: off by default, refused where nothing has a direction, learned in a short run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from short_training import losses_of

from corpus.view import View
from pretrain.config import SE2StageConfig
from pretrain.stages import se2_stage
from pretrain.train import train
from stofm.checkpoint import load_model
from stofm.errors import ConfigError
from stofm.se2_transformer import SE2Transformer, SE2TransformerConfig

DIRECTIONAL = SE2TransformerConfig(n_layers=1, n_heads=4, n_neighbors=6, geometry="directional", dropout=0.0)
DENOISING = SE2StageConfig(mcm_weight=0.0, pdr_weight=0.0, displacement_weight=1.0, move_sigma=1.0)


@pytest.fixture
def view(tiny_run) -> View:
    return View(tiny_run / "views" / "embedded")


def test_the_loss_is_a_sum_over_moved_cells_and_zero_for_the_truth(view):
    torch.manual_seed(0)
    stage = se2_stage(DENOISING, SE2Transformer(DIRECTIONAL), view, seed=0)
    batch = stage.micro_batch([(0, 0), (0, 1)])
    out = stage.model.transformer(batch.seen)
    predicted = stage.model.displacement_head(out.cell_repr, out.directions)[tuple(batch.moved.T)].detach()
    assert predicted.shape == batch.displacements.shape == (batch.counts()["displacement"], 2)
    torch.testing.assert_close(stage.model(batch)["displacement"].detach(), ((predicted - batch.displacements) ** 2).sum())
    assert stage.model(replace(batch, displacements=predicted))["displacement"] < 1e-6


def test_displacements_are_learned(view):
    torch.manual_seed(0)
    stage = se2_stage(DENOISING, SE2Transformer(DIRECTIONAL), view, seed=0)
    batch = stage.micro_batch([(0, 0)])
    losses = losses_of("displacement", stage, batch, n_steps=60, optimizer=torch.optim.Adam)
    assert losses[-1] < 0.5 * losses[0]


def test_without_a_weight_there_is_no_head_and_no_loss(view):
    stage = se2_stage(SE2StageConfig(), SE2Transformer(DIRECTIONAL), view, seed=0)
    assert stage.model.displacement_head is None
    assert "displacement" not in stage.model(stage.micro_batch([(0, 0)]))


def test_denoising_without_directions_is_refused_in_one_line(tiny_run_config, tmp_path):
    stage = tiny_run_config.se2_stage.model_copy(update={"displacement_weight": 0.5})
    with pytest.raises(ConfigError, match=r"displacement_weight: found 0.5 with `geometry: distances`; expected `directional`"):
        train(tiny_run_config.model_copy(update={"se2_stage": stage, "out": str(tmp_path / "run")}))


def test_a_directional_model_is_trained_saved_and_loaded(tiny_run_config, tiny_run, tmp_path):
    settings = {
        "out": str(tmp_path / "run"),
        "cell_encoder_folder": str(tiny_run / "cell_encoder"),
        "encoder_stage": None,
        "se2_transformer": DIRECTIONAL,
        "se2_stage": SE2StageConfig(max_steps=2, displacement_weight=0.1),
    }
    model = load_model(train(tiny_run_config.model_copy(update=settings))).se2_transformer
    assert model.config.geometry == "directional"
    assert model.directional.to_tokens.weight.abs().max() > 0


def test_a_model_of_distances_has_no_weight_of_directions(tiny_run):
    model = load_model(Path(tiny_run) / "model").se2_transformer
    assert model.config.geometry == "distances"
    assert not [name for name in model.state_dict() if name.startswith("directional")]


def test_a_model_fresh_from_its_start_is_the_same_with_and_without_directions(view):
    models = []
    for geometry in ("distances", "directional"):
        torch.manual_seed(0)
        models.append(SE2Transformer(DIRECTIONAL.model_copy(update={"geometry": geometry})).eval())
    batch = se2_stage(SE2StageConfig(), models[0], view, seed=0).micro_batch([(0, 0)]).seen
    assert torch.equal(models[0](batch).cell_repr, models[1](batch).cell_repr)


def test_directions_are_read_in_float32_where_the_rest_is_rounded_to_bf16(view):
    model = SE2Transformer(DIRECTIONAL).eval()
    batch = se2_stage(SE2StageConfig(), model, view, seed=0).micro_batch([(0, 0)]).seen
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch)
    assert out.directions.features.dtype == torch.float32
    assert out.cell_repr.isfinite().all()
