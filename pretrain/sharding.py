"""FSDP2: weights, gradients and moments of AdamW in equal parts on all processes, by torch's `fully_shard`, for accelerate shards on GPUs alone.

What is sharded is a copy of a model. The model itself gives up its weights, and has them again while a block of `gathered` runs: then a
process can work with it alone (validation, probes), or write it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(model: nn.Module, *, blocks: str, device: torch.device, n_ranks: int) -> nn.Module:
    """Copy `model` to all processes, a part of every weight on each; its own weights are given up.

    Parameters
    ----------
    blocks : str
        Submodule whose children are gathered one at a time when they are run. All processes have to run them equally often. What lies outside
        is gathered for the whole of a forward and backward pass.
    """
    sharded, mesh = deepcopy(model.cpu()), init_device_mesh(device.type, (n_ranks,))  # from the CPU, so that no device ever holds all of it
    for block in sharded.get_submodule(blocks).children():
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    _give_up(model)
    model.to(device)
    return sharded


def gather(model: nn.Module, sharded: nn.Module) -> None:
    """Give `model` the weights of its sharded copy; all processes have to take part."""
    for name, parameter in model.named_parameters():
        divided = sharded.get_parameter(name).detach()
        assert isinstance(divided, DTensor)
        parameter.data = divided.full_tensor()


@contextmanager
def gathered(model: nn.Module, sharded: nn.Module) -> Iterator[None]:
    """Let `model` have its weights while the block runs; all processes have to enter it."""
    gather(model, sharded)
    try:
        yield
    finally:
        _give_up(model)


def part_of(whole: torch.Tensor, like: torch.Tensor | None) -> torch.Tensor:
    """Return what this process holds of a tensor where `like` is sharded; all of it elsewhere."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)  # every process has read all of it


def _give_up(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.new_empty(0)
