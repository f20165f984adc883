"""Checkpoints of a run: weights and optimiser as safetensors, a step number, hashes; no pickle, and none of it half-written.

Sample order, masks and dropout are functions of the step, so the step number is all the rest there is to save.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import Optimizer

from stofm.durable import read_json, remove, replacing, tree_sha256, write_json
from stofm.errors import CheckpointError, FormatError
from stofm.weights import load_weights

CHECKPOINT_FORMAT = "stofm-checkpoint/1"
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def save_checkpoint(folder: Path, stage: str, step: int, model: nn.Module, optimizer: Optimizer, *, run: dict[str, str], n_kept: int) -> None:
    """Write ``folder/<stage>-<step>``, whole or not at all, then drop the oldest of the stage beyond `n_kept`.

    Parameters
    ----------
    run : {str: str}
        What the run is made of (configuration, corpus); a resume compares it.
    """
    optimizer_state: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=FLAT)
    tensors = {name: value for name, value in optimizer_state.items() if isinstance(value, torch.Tensor)}
    with replacing(folder / f"{stage}-{step:08d}") as aside:
        aside.mkdir()
        save_file(_on_cpu(model.state_dict()), aside / "weights.safetensors")
        save_file(_on_cpu(tensors), aside / "optimizer.safetensors")
        state = {"format": CHECKPOINT_FORMAT, "stage": stage, "step": step, "run": run, "files": tree_sha256(aside)}
        write_json(aside / "state.json", state)
    for old in _checkpoints(folder, stage)[:-n_kept]:
        remove(old)


def resume(folder: Path, stage: str, model: nn.Module, optimizer: Optimizer, *, run: dict[str, str], warn: Callable[[str], None]) -> int:
    """Load the newest whole checkpoint of a stage; returns its step, 0 where there is none.

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
        load_weights(model, path / "weights.safetensors")
        _load_optimizer(path / "optimizer.safetensors", model, optimizer)
        return int(state["step"])
    return 0


def _load_optimizer(path: Path, model: nn.Module, optimizer: Optimizer) -> None:
    flat: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=FLAT)
    flat.update(load_file(path))
    set_optimizer_state_dict(model, optimizer, flat, options=FLAT)


def _checkpoints(folder: Path, stage: str) -> list[Path]:
    return sorted(folder.glob(f"{stage}-[0-9]*"))


def _on_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
