"""One stage of training, step by step, on one process or many, from its last checkpoint to its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.optim import Optimizer

from corpus.loader import read_ahead
from pretrain.background import Background
from pretrain.callbacks import Callbacks, Progress
from pretrain.config import PretrainConfig
from pretrain.data import Order, torch_seed
from pretrain.measure import evaluating, mean_losses
from pretrain.optim import learning_rate, make_optimizer, set_learning_rate
from pretrain.run_log import RunLog
from pretrain.sharding import gather, gathered, shard
from pretrain.stages import Stage
from pretrain.state import load_checkpoint, newest_checkpoint, snapshot, write_checkpoint
from pretrain.stopping import stop_requests
from pretrain.telemetry import Meter
from pretrain.trackers import Trackers
from pretrain.watch import alarm_of, spread_of
from stofm.errors import DataError, Stopped

N_AHEAD, THREADS_FOR_GPU = 4, 4  # micro-batches made while one is used, and in how many threads where the model leaves the processor free


def run_stage(
    stage: Stage, config: PretrainConfig, folder: Path, run: dict[str, str], accelerator: Accelerator, callbacks: Callbacks,
    probe: Callable[[], dict[str, float]] = dict,
) -> None:  # fmt: skip
    """Train one stage to its end, from its last checkpoint if there is one; `stage.model` then holds the weights.

    Raises
    ------
    Stopped
        If SIGTERM or SIGUSR1 came; a checkpoint of the step at hand was written.
    """
    n_micro, n_ranks, rank, device = stage.config.n_micro_batches, accelerator.num_processes, accelerator.process_index, accelerator.device
    n_threads = 1 if device.type == "cpu" else THREADS_FOR_GPU
    checkpoints, is_main, is_sharded = folder / "checkpoints", accelerator.is_main_process, config.sharding == "fsdp2" and n_ranks > 1
    last = newest_checkpoint(checkpoints, stage.name, run=run, warn=callbacks.report)
    if last is None:
        stage.begin()
    trained = shard(stage.model, blocks=stage.blocks, device=device, n_ranks=n_ranks) if is_sharded else stage.model.to(device)
    whole = partial(gathered, stage.model, trained) if is_sharded else nullcontext  # in it all weights are in `stage.model`
    optimizer = make_optimizer(trained, stage.config.optim, lr_shares=stage.lr_shares)
    start = 0 if last is None else load_checkpoint(last, trained, optimizer)
    log, trackers = RunLog(folder / "losses.jsonl", is_writer=is_main), Trackers(folder, stage.name, config.trackers, start=start, is_writer=is_main)
    log.rewind(stage.name, start)
    accelerator.wait_for_everyone()
    model, optimizer = _prepared(trained.train(), optimizer, accelerator, is_sharded=is_sharded)
    forward = torch.compile(model) if stage.config.compile else model
    order = Order(stage.n_units, config.seed)
    meter = Meter(device, torch.bfloat16 if config.precision == "bf16" else torch.float32, n_ranks=n_ranks)

    def units(number: int) -> list[tuple[int, int]]:
        return [order[number * stage.units_each + unit] for unit in range(stage.units_each)]

    def numbers(step: int) -> range:
        return range(step * n_micro + rank, (step + 1) * n_micro, n_ranks)

    with trackers, Background() as background, stop_requests() as stop:
        for step in range(start, stage.n_steps):
            if step in (start, border := stage.border_before(step)):
                with whole():
                    stage.refresh(border, step)
                ahead = [number for later in range(step, stage.border_after(step)) for number in numbers(later)]
                batches = read_ahead(lambda number: stage.micro_batch(units(number)), ahead, n_ahead=N_AHEAD, n_threads=n_threads)
            with meter.waiting():
                micro_batches = [next(batches) for _ in numbers(step)]
            counts = _total([batch.counts() for batch in micro_batches], accelerator)  # over micro-batches and processes, before any loss
            sums = dict.fromkeys(counts, torch.zeros((), device=device))
            for number, batch in zip(numbers(step), micro_batches, strict=True):
                torch.manual_seed(torch_seed(config.seed, step, number))  # dropout follows the micro-batch, not the process
                with nullcontext() if number == numbers(step)[-1] else accelerator.no_sync(model):
                    means = {name: value / max(1.0, counts[name]) for name, value in forward(batch.to(device)).items()}
                    accelerator.backward(sum(stage.weights[name] * mean for name, mean in means.items()) * n_ranks)
                sums = {name: sums[name] + mean.detach() for name, mean in means.items()}
                meter.add(stage.work(batch))
            asked = torch.tensor(float(stop.came), device=device)  # a scheduler may tell some processes only
            *values, n_asked = accelerator.reduce(torch.stack([*sums.values(), asked]), "sum").tolist()
            losses = dict(zip(sums, values, strict=True))
            grad_norm = float(accelerator.clip_grad_norm_(model.parameters(), stage.config.optim.clip_norm))
            _require_finite(
                {**losses, "gradient norm": grad_norm}, stage, step, [units(number) for number in range(step * n_micro, (step + 1) * n_micro)]
            )
            lr = learning_rate(stage.config.optim, step, stage.n_steps)
            set_learning_rate(optimizer, lr)
            optimizer.step()
            optimizer.zero_grad()

            done, is_last = step + 1, step + 1 == stage.n_steps
            meter.step()
            callbacks.on_step(Progress(stage.name, done, stage.n_steps, losses))
            notes: dict[str, Any] = {}
            watches, probes = done % config.watch_every == 0 and stage.embed is not None, config.probe_every and done % config.probe_every == 0
            saves = done % config.save_every == 0 or is_last or n_asked > 0
            held_out = stage.validation if saves and config.n_validation else None
            with whole() if watches or probes or held_out else nullcontext():
                if watches and is_main:
                    notes |= _watch(stage, stage.model, micro_batches[0].to(device), callbacks)
                if probes and is_main and (found := probe()):
                    notes["probe"] = found
                if held_out and is_main:
                    with accelerator.autocast():
                        notes["validation"] = mean_losses(replace(held_out, model=stage.model), device=device, n_units=config.n_validation)
            if done % config.log_every == 0 or is_last or notes:
                measures = {"grad_norm": grad_norm, "lr": lr, **meter.read(steps_left=stage.n_steps - done), **notes}
                log.write(stage.name, done, losses, **measures)
                trackers.log(done, {"losses": losses, **measures})
            if saves and (is_main or is_sharded):
                made = snapshot(trained, optimizer.optimizer)
            if saves and is_main:
                held_out_loss = sum(stage.weights[name] * value for name, value in notes["validation"].items()) if "validation" in notes else None
                background.start(
                    write_checkpoint, checkpoints, stage.name, done, made, run=run, n_kept=config.n_checkpoints, validation=held_out_loss
                )
            if n_asked:
                background.wait()
                accelerator.wait_for_everyone()
                raise Stopped(f"{stage.name} stage: told to stop after step {done}; a checkpoint was written. The same command goes on from there.")
    if is_sharded:
        gather(stage.model, trained)
    accelerator.wait_for_everyone()
    accelerator.free_memory()


def _prepared(model: nn.Module, optimizer: Optimizer, accelerator: Accelerator, *, is_sharded: bool) -> tuple[nn.Module, AcceleratedOptimizer]:
    """For several processes and mixed precision; what is sharded already, for mixed precision alone."""
    if is_sharded:
        return accelerator.prepare_model(model, evaluation_mode=True), accelerator.prepare(optimizer)
    return accelerator.prepare(model, optimizer)


def _watch(stage: Stage, model: nn.Module, batch: Any, callbacks: Callbacks) -> dict[str, float]:
    """Effective rank and spread of the embeddings of a batch; an alarm is reported."""
    assert stage.embed is not None
    with evaluating(model):
        found = spread_of(stage.embed(model, batch).float())
    if (alarm := alarm_of(found)) is not None:
        callbacks.report(f"{stage.name} stage: {alarm}")
    return found


def _total(counts: list[dict[str, int]], accelerator: Accelerator) -> dict[str, float]:
    """Targets of each objective over all micro-batches of all processes."""
    sums = torch.tensor([[float(value) for value in one.values()] for one in counts], device=accelerator.device).sum(dim=0)
    return dict(zip(counts[0], accelerator.reduce(sums, "sum").tolist(), strict=True))


def _require_finite(values: dict[str, float], stage: Stage, step: int, micro_batches: Sequence[Sequence[tuple[int, int]]]) -> None:
    """Raise `DataError` with the records of the step unless all values are numbers."""
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        records = ", ".join(sorted({stage.key(unit) for units in micro_batches for _, unit in units}))
        raise DataError(
            f"{stage.name} stage, step {step + 1}: {bad[0]} is {values[bad[0]]} in records {records}; expected a number. Nothing was updated; "
            "lower `optim.lr` and start again from the last checkpoint."
        )
