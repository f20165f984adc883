"""From a corpus to a model: adapt the cell encoder, embed the corpus with it, train the SE(2) transformer, then both together.

A run is one folder. Started again, it goes on where its last whole checkpoint stands and ends as if it had never stopped.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import nn

from corpus.build import embedded_shards
from corpus.gene_ids import GENE_TABLES
from corpus.loader import read_ahead
from corpus.shards import Shard, write_view
from corpus.store import Corpus
from corpus.view import View
from pretrain.background import Background
from pretrain.config import PretrainConfig
from pretrain.data import Order, torch_seed
from pretrain.encoder_init import start_from_coexpression
from pretrain.joint import joint_stage
from pretrain.measure import evaluating, mean_losses
from pretrain.model_card import model_card
from pretrain.objectives import SE2Objectives
from pretrain.optim import learning_rate, make_optimizer, set_learning_rate
from pretrain.run_log import RunLog, read_run_log, steps_of
from pretrain.stages import Stage, encoder_stage, records_of, se2_stage
from pretrain.state import resume, snapshot, write_checkpoint
from pretrain.stopping import stop_requests
from pretrain.telemetry import Meter
from pretrain.trackers import Trackers, require_trackers
from pretrain.watch import alarm_of, spread_of
from stofm.cell_encoder import CellEncoder, embed_cells
from stofm.checkpoint import ENCODER_START, save_model
from stofm.durable import check_folder, claim_folder, read_json, remove, replacing, sweep, tree_digest, write_json, write_text
from stofm.errors import CheckpointError, ConfigError, DataError, Stopped
from stofm.se2_transformer import SE2Transformer
from stofm.weights import tensors_sha256

RUN_KIND = "stofm-run/1"
UNRELATED = {
    "out",
    "corpus",
    "log_every",
    "save_every",
    "n_checkpoints",
    "n_validation",
    "watch_every",
    "probe_every",
    "trackers",
}  # to what is learned
N_AHEAD = 4  # micro-batches made while one is used


@dataclass(frozen=True)
class Progress:
    """What a step reports."""

    stage: str
    step: int
    n_steps: int
    losses: dict[str, float]


Probe = Callable[[Corpus, CellEncoder, SE2Transformer], dict[str, float]]


@dataclass(frozen=True, eq=False)
class Callbacks:
    """What the caller wants to hear of: called on the first process only."""

    on_step: Callable[[Progress], None] = lambda _: None
    track: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()
    report: Callable[[str], None] = lambda _: None
    probe: Probe = lambda *_: {}  # how much labels can be read off the embeddings of validation slices


SILENT = Callbacks()


@stop_requests()
def train(config: PretrainConfig, callbacks: Callbacks = SILENT) -> Path:
    """Run or finish a pretraining run; returns the folder of the model.

    Raises
    ------
    ConfigError
        If the output holds something else, or the processes do not divide the micro-batches.
    CheckpointError
        If the output holds a run of another configuration, corpus or vocabulary, or the encoder does not fit the vocabulary.
    Stopped
        If SIGTERM or SIGUSR1 came; the same command goes on.
    """
    folder, corpus = Path(config.out), Corpus(config.corpus)
    check_folder(folder, RUN_KIND)
    _require_trainable(config, corpus)
    require_trackers(config.trackers)
    accelerator = _accelerator(config)
    if not accelerator.is_main_process:
        callbacks = SILENT
    _require_divisible(config, accelerator.num_processes)
    run = {"configuration": config.digest(exclude=UNRELATED), "corpus": corpus.corpus_id, "vocabulary": corpus.vocab.sha256}
    _claim(folder, config, run, accelerator)
    if (folder / "model").is_dir():
        callbacks.report(f"run {folder} is complete")
        return folder / "model"

    splits = {entry["slice_id"]: entry.get("split", "") for entry in corpus.manifest["slices"]}
    encoder = _adapted_encoder(config, corpus, splits, folder, run, accelerator, callbacks)
    view = _embedded_view(corpus, encoder, folder / "views" / "embedded", accelerator, callbacks)
    torch.manual_seed(config.seed + 1)
    transformer = SE2Transformer(config.se2_transformer)

    def probe() -> dict[str, float]:
        with evaluating(encoder, transformer):
            return callbacks.probe(corpus, encoder, transformer)

    objectives = SE2Objectives.of(config.se2_stage, transformer)
    stage = _with_validation(partial(se2_stage, config.se2_stage, transformer, view, seed=config.seed, model=objectives), view, splits)
    _run_stage(stage, config, folder, run, accelerator, callbacks, probe=probe)
    if config.joint_stage is not None:

        def view_at(border: int, step: int) -> View:
            return _refreshed_view(corpus, encoder, folder / "views", border, step, accelerator, callbacks)

        joint = _with_validation(
            partial(joint_stage, config.joint_stage, config.se2_stage, encoder.requires_grad_(True), objectives, corpus.token_view(), view,
                    make_view=view_at, cls_token=corpus.vocab.cls_token, seed=config.seed), view, splits,
        )  # fmt: skip
        _run_stage(joint, config, folder, run, accelerator, callbacks, probe=probe)
    if accelerator.is_main_process:
        inputs = {entry["slice_id"]: entry["input_sha256"] for entry in corpus.manifest["slices"]}
        trained_on = {**run, "inputs": inputs}
        texts = {
            "gene_vocab.csv": corpus.vocab.to_csv(),
            GENE_TABLES: corpus.gene_tables.to_json(),
            "scales.json": corpus.scales.model_dump_json(indent=1),
            "README.md": model_card(config, corpus, steps_of(read_run_log(folder / "losses.jsonl"))),
        }
        save_model(folder / "model", encoder.cpu(), transformer.cpu(), texts=texts, trained_on=trained_on)
    accelerator.wait_for_everyone()
    return folder / "model"


def _run_stage(
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
    optimizer = make_optimizer(stage.model.to(device), stage.config.optim, lr_shares=stage.lr_shares)
    checkpoints, is_main = folder / "checkpoints", accelerator.is_main_process
    start = resume(checkpoints, stage.name, stage.model, optimizer, run=run, warn=callbacks.report)
    log, trackers = RunLog(folder / "losses.jsonl", is_writer=is_main), Trackers(folder, stage.name, config.trackers, start=start, is_writer=is_main)
    log.rewind(stage.name, start)
    accelerator.wait_for_everyone()
    model, optimizer = accelerator.prepare(stage.model.train(), optimizer)
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
                stage.refresh(border, step)
                ahead = [number for later in range(step, stage.border_after(step)) for number in numbers(later)]
                batches = read_ahead(lambda number: stage.micro_batch(units(number)), ahead, n_ahead=N_AHEAD)
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
            if done % config.watch_every == 0 and is_main and stage.embed is not None:
                notes |= _watch(stage, accelerator.unwrap_model(model), micro_batches[0].to(device), callbacks)
            if config.probe_every and done % config.probe_every == 0 and is_main and (found := probe()):
                notes["probe"] = found
            saves = done % config.save_every == 0 or is_last or n_asked > 0
            if saves and is_main and stage.validation is not None and config.n_validation:
                held_out = replace(stage.validation, model=accelerator.unwrap_model(model))
                notes["validation"] = mean_losses(held_out, device=device, n_units=config.n_validation)
            if done % config.log_every == 0 or is_last or notes:
                measures = {"grad_norm": grad_norm, "lr": lr, **meter.read(steps_left=stage.n_steps - done), **notes}
                log.write(stage.name, done, losses, **measures)
                trackers.log(done, {"losses": losses, **measures})
            if saves and is_main:
                held_out_loss = sum(stage.weights[name] * value for name, value in notes["validation"].items()) if "validation" in notes else None
                made = snapshot(accelerator.unwrap_model(model), optimizer.optimizer)
                background.start(
                    write_checkpoint, checkpoints, stage.name, done, made, run=run, n_kept=config.n_checkpoints, validation=held_out_loss
                )
            if n_asked:
                background.wait()
                accelerator.wait_for_everyone()
                raise Stopped(f"{stage.name} stage: told to stop after step {done}; a checkpoint was written. The same command goes on from there.")
    accelerator.wait_for_everyone()
    accelerator.free_memory()


def _watch(stage: Stage, model: nn.Module, batch: Any, callbacks: Callbacks) -> dict[str, float]:
    """Effective rank and spread of the embeddings of a batch; an alarm is reported."""
    assert stage.embed is not None
    with evaluating(model):
        found = spread_of(stage.embed(model, batch).float())
    if (alarm := alarm_of(found)) is not None:
        callbacks.report(f"{stage.name} stage: {alarm}")
    return found


def _with_validation(make: Callable[..., Stage], view: View, splits: Mapping[str, str]) -> Stage:
    """The stage on the slices to train on, its twin on those to validate on beside it where there are any."""
    stage, held_out = make(records=records_of(view, splits, "", "train")), records_of(view, splits, "validation")
    if not stage.n_units:
        raise DataError(f"{stage.name} stage: found no sub-slice in the training split; expected some. Change `splits` of the corpus.")
    if not held_out:
        return stage
    twin = make(records=held_out)

    def refresh(border: int, step: int) -> None:
        stage.refresh(border, step)
        twin.refresh(border, step)

    return replace(stage, validation=twin, refresh=refresh)


def _adapted_encoder(
    config: PretrainConfig, corpus: Corpus, splits: Mapping[str, str], folder: Path, run: dict[str, str], accelerator: Accelerator,
    callbacks: Callbacks,
) -> CellEncoder:  # fmt: skip
    """The encoder after its stage, in evaluation mode; kept in the run's folder, beside the one it started as, with which it is compared."""
    done, start = folder / "cell_encoder", folder / ENCODER_START
    if not done.is_dir():
        torch.manual_seed(config.seed)
        encoder = _initial_encoder(config, corpus)
        if accelerator.is_main_process:
            with replacing(start) as aside:
                encoder.save(aside)
        if config.encoder_stage is not None:
            view = corpus.token_view()
            make = partial(encoder_stage, config.encoder_stage, encoder, view, cls_token=corpus.vocab.cls_token, seed=config.seed)
            stage = _with_validation(make, view, splits)
            _run_stage(stage, config, folder, run, accelerator, callbacks)
        if accelerator.is_main_process:
            with replacing(done) as aside:
                encoder.save(aside)
        accelerator.wait_for_everyone()
    return CellEncoder.from_folder(done).eval().requires_grad_(False)


def _initial_encoder(config: PretrainConfig, corpus: Corpus) -> CellEncoder:
    n_tokens, max_tokens = corpus.vocab.n_tokens, corpus.scales.rank_value.max_tokens
    if config.cell_encoder_folder is None:
        encoder = CellEncoder.from_scratch(config.cell_encoder, n_tokens=n_tokens, max_tokens=max_tokens)
        start_from_coexpression(encoder, corpus, seed=config.seed)
        return encoder
    encoder = CellEncoder.from_folder(Path(config.cell_encoder_folder))
    if encoder.n_tokens != n_tokens or encoder.max_tokens < max_tokens:
        raise CheckpointError(
            f"cell encoder {config.cell_encoder_folder}: made for {encoder.n_tokens} ids and {encoder.max_tokens} genes a cell, the corpus has "
            f"{n_tokens} and {max_tokens}; expected them to fit. Build the corpus with the encoder's vocabulary (`genes.vocabulary`) and length."
        )
    return encoder


def _embedded_view(
    corpus: Corpus, encoder: CellEncoder, folder: Path, accelerator: Accelerator, callbacks: Callbacks, *, encoder_id: str | None = None
) -> View:
    """Embed the corpus with an encoder, by default the finished one of the run, unless that was done before; every process a share of it."""
    encoder_id = encoder_id or tree_digest(folder.parent.parent / "cell_encoder")
    if not (folder / "view.json").is_file():
        encoder.to(accelerator.device)

        def shards_of(slice_id: str) -> list[Shard]:
            embed = partial(embed_cells, encoder, cls_token=corpus.vocab.cls_token)
            return embedded_shards(corpus, folder, slice_id, embed, encoder_id=encoder_id)

        with stop_requests() as stop:
            for slice_id in corpus.slice_ids[accelerator.process_index :: accelerator.num_processes]:
                with callbacks.track(f"{slice_id}: cell embeddings"):
                    shards_of(slice_id)
                if stop.came:
                    raise Stopped(f"embedding the corpus: told to stop after slice {slice_id!r}, which is kept. The same command goes on from there.")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shards = [shard for slice_id in corpus.slice_ids for shard in shards_of(slice_id)]  # all of them stand now
            write_view(folder, shards, made_from={"encoder": encoder_id, "corpus": corpus.corpus_id})
        accelerator.wait_for_everyone()
    return View(folder)


def _refreshed_view(
    corpus: Corpus, encoder: CellEncoder, views: Path, border: int, step: int, accelerator: Accelerator, callbacks: Callbacks
) -> View:
    """Embed the corpus with the encoder as it is before step `border` of the joint stage; gone on from a later `step`, what was made then is read.

    A checkpoint of a later step is written after the view, so the view stands. At the border itself a view of other weights (sums on a GPU come
    out a little different after a stop) is made anew. The newest two are kept: a damaged checkpoint may send the run back by one.
    """
    folder = views / f"joint-{border:08d}"
    if step > border:
        if not (folder / "view.json").is_file():
            raise CheckpointError(
                f"view {folder}: missing; expected the one that step {step} goes on with. Remove the checkpoints after step {border}."
            )
        return View(folder)
    encoder_id = tensors_sha256(encoder.state_dict())
    if accelerator.is_main_process and (folder / "view.json").is_file() and View(folder).meta["made_from"]["encoder"] != encoder_id:
        remove(folder / "view.json")
    accelerator.wait_for_everyone()
    with evaluating(encoder):
        view = _embedded_view(corpus, encoder, folder, accelerator, callbacks, encoder_id=encoder_id)
    if accelerator.is_main_process:
        for old in sorted(views.glob("joint-[0-9]*"))[:-2]:
            remove(old)
    return view


def _accelerator(config: PretrainConfig) -> Accelerator:
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=config.precision)
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ConfigError(
            f"launch: found {accelerator.distributed_type.value}; expected one process, or several that each hold the whole model (DDP). "
            "Checkpoints of divided models are not written yet."
        )
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != expected:
        raise ConfigError(
            f"launch: found {accelerator.num_processes} processes in the group; expected {expected}. Start with the launchers in README.md."
        )
    return accelerator


def _claim(folder: Path, config: PretrainConfig, run: dict[str, str], accelerator: Accelerator) -> None:
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


def _require_trainable(config: PretrainConfig, corpus: Corpus) -> None:
    """Raise `ConfigError` if corpus, geometry and objectives do not go together."""
    if corpus.scales.scheme != "tissue":
        raise ConfigError(f"corpus {config.corpus}: found `scheme: {corpus.scales.scheme}`; training expects `tissue`. Build it again with that.")
    if config.se2_stage.displacement_weight and config.se2_transformer.geometry != "directional":
        raise ConfigError(
            f"se2_stage.displacement_weight: found {config.se2_stage.displacement_weight:g} with `geometry: {config.se2_transformer.geometry}`; "
            "expected `directional`, for distances point nowhere. Set `se2_transformer.geometry: directional`, or the weight to 0."
        )


def _require_divisible(config: PretrainConfig, n_ranks: int) -> None:
    """Raise `ConfigError` unless every process gets as many micro-batches as any other."""
    for name, stage in config.stages.items():
        if stage.n_micro_batches % n_ranks:
            raise ConfigError(f"{name}.n_micro_batches: found {stage.n_micro_batches} for {n_ranks} processes; expected a multiple of their number.")


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
