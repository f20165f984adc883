"""The processes of a run, as a launcher started them, and the folder that is theirs."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType

from pretrain.config import PretrainConfig
from stofm.durable import claim_folder, read_json, sweep, write_json, write_text
from stofm.errors import CheckpointError, ConfigError

RUN_KIND = "stofm-run/1"


def make_accelerator(config: PretrainConfig) -> Accelerator:
    """Join the group of processes that a launcher started; `ConfigError` if it is not one that training can use."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise ConfigError("launch: found FSDP in the settings of accelerate; expected none there. Set `sharding: fsdp2`, and start it as for DDP.")
    torch.backends.cuda.enable_cudnn_sdp(False)  # it makes a plan for every shape, and hardly two micro-batches have the same
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=config.precision)
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ConfigError(
            f"launch: found {accelerator.distributed_type.value}; expected one process, or several. Start with the recipes of docs/pretraining.md."
        )
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != expected:
        raise ConfigError(
            f"launch: found {accelerator.num_processes} processes in the group; expected {expected}. Start with the launchers in README.md."
        )
    return accelerator


def require_divisible(config: PretrainConfig, n_ranks: int) -> None:
    """Raise `ConfigError` unless every process gets as many micro-batches as any other."""
    common = math.gcd(*(stage.n_micro_batches for stage in config.stages.values()))
    valid = " or ".join(str(n) for n in range(1, common + 1) if common % n == 0)
    for name, stage in config.stages.items():
        if stage.n_micro_batches % n_ranks:
            raise ConfigError(
                f"{name}.n_micro_batches: found {stage.n_micro_batches} for {n_ranks} processes; expected a multiple of their number. "
                f"Start {valid} of them, or set it."
            )


def require_shardable(config: PretrainConfig) -> None:
    """Raise `ConfigError` if a stage is to be sharded and compiled."""
    for name, stage in config.stages.items():
        if config.sharding != "none" and stage.compile:
            raise ConfigError(
                f"{name}.compile: found true with `sharding: {config.sharding}`; expected false, for both together are not tested. Leave out one."
            )


def claim_run(folder: Path, config: PretrainConfig, run: dict[str, str], accelerator: Accelerator) -> None:
    """Make the run's folder, or make sure that it holds this run."""
    if (folder / "run.json").is_file():
        found = read_json(folder / "run.json")
        differing = [name for name in run if found.get(name) != run[name]]
        if differing:
            raise CheckpointError(f"output {folder}: found a run of another {differing[0]}; expected this one. Choose another `out`.")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        claim_folder(folder, RUN_KIND)
        sweep(folder)
        write_json(folder / "run.json", run)
        write_text(folder / "config.yaml", config.to_yaml())
    accelerator.wait_for_everyone()
