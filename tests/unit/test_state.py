"""Checkpoints: going on from one equals never having stopped, and a damaged one is passed over, not loaded."""

from __future__ import annotations

import errno
import json

import pytest
import torch
from torch import nn

import pretrain.state
from pretrain.state import best_checkpoint, load_checkpoint, newest_checkpoint, save_checkpoint, snapshot, write_checkpoint
from stofm.errors import CheckpointError, EnvironmentFault

RUN = {"configuration": "c1", "corpus": "d1"}


def fresh(seed: int = 0) -> tuple[nn.Module, torch.optim.AdamW]:
    """A small model with a frozen part, and AdamW in two groups as in training."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 1))
    model[2].requires_grad_(False)
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    return model, torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=1e-2)


def go(model: nn.Module, optimizer: torch.optim.AdamW, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (step + 1)
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def save(folder, step: int, model: nn.Module, optimizer: torch.optim.AdamW, *, n_kept: int = 5, stage: str = "se2") -> None:
    save_checkpoint(folder, stage, step, model, optimizer, run=RUN, n_kept=n_kept)


def resumed(folder, *, run=RUN, stage: str = "se2"):
    """A model of other weights after resuming: step, model, optimizer and warnings."""
    warnings: list[str] = []
    model, optimizer = fresh(seed=1)
    found = newest_checkpoint(folder, stage, run=run, warn=warnings.append)
    return 0 if found is None else load_checkpoint(found, model, optimizer), model, optimizer, warnings


@pytest.fixture
def folder(tmp_path):
    """Checkpoints after steps 3 and 6."""
    model, optimizer = fresh()
    for start in (0, 3):
        go(model, optimizer, range(start, start + 3))
        save(tmp_path, start + 3, model, optimizer)
    return tmp_path


def test_going_on_from_a_checkpoint_equals_never_having_stopped(folder):
    step, model, optimizer, warnings = resumed(folder)
    assert (step, warnings) == (6, [])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    go(model, optimizer, range(6, 12))
    whole, its_optimizer = fresh()
    go(whole, its_optimizer, range(12))
    for (name, one), (_, other) in zip(model.state_dict().items(), whole.state_dict().items(), strict=True):
        assert torch.equal(one, other), name
    assert [state["step"].item() for state in optimizer.state.values()] == [12.0] * 6


def flip_a_bit(folder, name: str) -> None:
    data = bytearray((folder / "se2-00000006" / name).read_bytes())
    data[-3] ^= 1
    (folder / "se2-00000006" / name).write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip_a_bit(folder, "weights.safetensors"),
        lambda folder: flip_a_bit(folder, "optimizer.safetensors"),
        lambda folder: (folder / "se2-00000006" / "weights.safetensors").unlink(),
        lambda folder: (folder / "se2-00000006" / "state.json").write_text('{"step": 6'),
        lambda folder: (folder / "se2-00000006" / "state.json").unlink(),
    ],
    ids=["weights", "optimizer", "no weights", "state cut off", "no state"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(folder, damage):
    damage(folder)
    step, model, optimizer, warnings = resumed(folder)
    assert step == 3
    assert len(warnings) == 1
    assert "se2-00000006 is damaged and passed over" in warnings[0]
    go(model, optimizer, range(3, 6))
    whole, its_optimizer = fresh()
    go(whole, its_optimizer, range(6))
    assert torch.equal(model[0].weight, whole[0].weight)


def test_without_a_checkpoint_the_start_is_step_0_and_nothing_is_changed(tmp_path):
    step, model, _, _ = resumed(tmp_path / "none")
    assert step == 0
    assert torch.equal(model[0].weight, fresh(seed=1)[0][0].weight)


def test_checkpoints_of_another_stage_are_left_alone(folder):
    assert resumed(folder, stage="encoder")[0] == 0


@pytest.mark.parametrize("differing", RUN)
def test_the_checkpoint_of_another_run_is_refused(folder, differing):
    with pytest.raises(CheckpointError, match=f"se2-00000006: its {differing} is not that of this run; expected the same"):
        resumed(folder, run={**RUN, differing: "other"})


def test_only_the_newest_are_kept(tmp_path):
    model, optimizer = fresh()
    go(model, optimizer, range(1))
    save(tmp_path, 999, model, optimizer, stage="encoder")
    for step in (8, 9, 10, 11):
        save(tmp_path, step, model, optimizer, n_kept=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder-00000999", "se2-00000010", "se2-00000011"]


def write(folder, step: int, validation: float | None, *, n_kept: int = 1) -> None:
    write_checkpoint(folder, "se2", step, snapshot(*fresh()), run=RUN, n_kept=n_kept, validation=validation)


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path):
    for step, validation in enumerate([0.9, 0.4, 0.7, 0.6], start=1):
        write(tmp_path, step, validation)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["se2-00000002", "se2-00000004"]
    assert best_checkpoint(tmp_path, "se2") == tmp_path / "se2-00000002"
    write(tmp_path, 5, 0.3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["se2-00000005"]


def test_without_validation_there_is_no_best(tmp_path):
    write(tmp_path, 1, None)
    assert best_checkpoint(tmp_path, "se2") is None


@pytest.mark.parametrize("file", ["optimizer.safetensors", "state.json"])
def test_a_full_disk_leaves_the_last_good_checkpoint_and_names_it(folder, monkeypatch, file):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pretrain.state, "write_json" if file == "state.json" else "save_file", full)
    with pytest.raises(EnvironmentFault, match=r"se2-00000009: .*No space left on device; .*The last good one is se2-00000006; make room"):
        write(folder, 9, None)
    monkeypatch.undo()
    assert sorted(path.name for path in folder.iterdir()) == ["se2-00000003", "se2-00000006"]
    assert resumed(folder)[0] == 6


def test_a_snapshot_does_not_change_with_the_model():
    model, optimizer = fresh()
    go(model, optimizer, range(1))
    made = snapshot(model, optimizer)
    before = {name: value.clone() for name, value in {**made.weights, **made.optimizer}.items()}
    go(model, optimizer, range(1, 3))
    assert all(torch.equal(value, before[name]) for name, value in {**made.weights, **made.optimizer}.items())


def test_nothing_in_a_checkpoint_is_pickled(folder):
    files = sorted(path.name for path in (folder / "se2-00000006").iterdir())
    assert files == ["optimizer.safetensors", "state.json", "weights.safetensors"]
    assert json.loads((folder / "se2-00000006" / "state.json").read_text())["run"] == RUN
