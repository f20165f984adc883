"""Checkpoints of a run: weights and optimiser as safetensors, a step number, hashes; no pickle, and none of it half-written.

Sample order, masks and dropout are functions of the step, so the step number is all the rest there is to save.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from pretrain.sharding import part_of
from stofm.durable import read_json, remove, replacing, tree_sha256, write_json
from stofm.errors import CheckpointError, EnvironmentFault, FormatError, one_line
from stofm.weights import load_weights

CHECKPOINT_FORMAT = "stofm-checkpoint/1"
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
WHOLE = StateDictOptions(flatten_optimizer_state_dict=True, full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Weights and state of the optimiser at one step, as arrays of their own on the CPU, whatever devices share the model."""

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]


def snapshot(model: nn.Module, optimizer: Optimizer) -> Snapshot:
    """Copy what a checkpoint holds; all processes have to take part where they share the model."""
    state: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=WHOLE)
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    return Snapshot(_copied(get_model_state_dict(model, options=WHOLE)), _copied(tensors))


def write_checkpoint(
    folder: Path, stage: str, step: int, made: Snapshot, *, run: dict[str, str], n_kept: int, validation: float | None = None
) -> None:
    """Write ``folder/<stage>-<step>``, whole or not at all, then drop the stage's checkpoints but for the newest `n_kept` and the best.

    Parameters
    ----------
    run : {str: str}
        What the run is made of (configuration, corpus, vocabulary); a resume compares it.
    validation : float, optional
        Its loss on validation slices; the checkpoint with the least is the best.

    Raises
    ------
    EnvironmentFault
        If the disk does not take it; what was there before is left as it was.
    """
    try:
        with replacing(folder / f"{stage}-{step:08d}") as aside:
            aside.mkdir()
            save_file(made.weights, aside / "weights.safetensors")
            save_file(made.optimizer, aside / "optimizer.safetensors")
            state = {"format": CHECKPOINT_FORMAT, "stage": stage, "step": step, "run": run, "files": tree_sha256(aside)}
            write_json(aside / "state.json", state if validation is None else {**state, "validation": validation})
    except (OSError, SafetensorError) as error:
        good = [path.name for path in _checkpoints(folder, stage)]
        raise EnvironmentFault(
            f"checkpoint {folder / f'{stage}-{step:08d}'}: {one_line(error)}; expected a disk that takes it. The last good one is "
            f"{good[-1] if good else 'that of the stage before, if any'}; make room and start again."
        ) from error
    every = _checkpoints(folder, stage)
    for old in set(every[:-n_kept]) - {best_checkpoint(folder, stage)}:
        remove(old)


def save_checkpoint(folder: Path, stage: str, step: int, model: nn.Module, optimizer: Optimizer, *, run: dict[str, str], n_kept: int) -> None:
    """Write the checkpoint of a model that is on this process alone, at once."""
    write_checkpoint(folder, stage, step, snapshot(model, optimizer), run=run, n_kept=n_kept)


def best_checkpoint(folder: Path, stage: str) -> Path | None:
    """Return the checkpoint with the least validation loss, of equals the newest; None where none was measured."""
    found = []
    for path in _checkpoints(folder, stage):
        with suppress(FormatError):  # a damaged one is not the best
            loss = read_json(path / "state.json").get("validation")
            found += [(-loss, path)] if isinstance(loss, float) else []
    return max(found)[1] if found else None


def newest_checkpoint(folder: Path, stage: str, *, run: dict[str, str], warn: Callable[[str], None]) -> Path | None:
    """Return the newest whole checkpoint of a stage; None where there is none.

    A damaged checkpoint is named through `warn`, and the one before it is taken.

    Raises
    ------
    CheckpointError
        If the checkpoint belongs to a run of another configuration or corpus.
    """
    for path in reversed(_checkpoints(folder, stage)):
        try:
            state = read_json(path / "state.json")
        except FormatError as error:
            warn(f"checkpoint {path} is damaged and passed over: {error}")
            continue
        files = tree_sha256(path)
        if any(files.get(name) != sha256 for name, sha256 in state["files"].items()):
            warn(f"checkpoint {path} is damaged and passed over: its files differ from their hashes")
            continue
        differing = [name for name, value in run.items() if state["run"].get(name) != value]
        if differing:
            raise CheckpointError(f"checkpoint {path}: its {differing[0]} is not that of this run; expected the same. Choose another `out`.")
        return path
    return None


def load_checkpoint(path: Path, model: nn.Module, optimizer: Optimizer) -> int:
    """Load a whole checkpoint; returns its step."""
    load_weights(model, path / "weights.safetensors", part_of=part_of)
    _load_optimizer(path / "optimizer.safetensors", model, optimizer)
    return int(read_json(path / "state.json")["step"])


def _load_optimizer(path: Path, model: nn.Module, optimizer: Optimizer) -> None:
    flat: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=FLAT)
    flat.update({name: part_of(whole, flat.get(name)) for name, whole in load_file(path).items()})
    set_optimizer_state_dict(model, optimizer, flat, options=FLAT)


def _checkpoints(folder: Path, stage: str) -> list[Path]:
    return sorted(folder.glob(f"{stage}-[0-9]*"))


def _copied(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
