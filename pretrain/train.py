"""From a corpus to a model: adapt the cell encoder, embed the corpus with it, train the SE(2) transformer.

A run is one folder. Started again, it goes on where its last whole checkpoint stands and ends as if it had never stopped.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from corpus.build import embedded_shards
from corpus.gene_ids import GENE_TABLES
from corpus.shards import Shard, write_view
from corpus.store import Corpus
from corpus.view import View
from pretrain.config import OptimConfig, PretrainConfig
from pretrain.data import Order, torch_seed
from pretrain.encoder_init import start_from_coexpression
from pretrain.model_card import model_card
from pretrain.run_log import RunLog
from pretrain.stages import Stage, encoder_stage, se2_stage
from pretrain.state import resume, save_checkpoint
from stofm.cell_encoder import CellEncoder, embed_cells
from stofm.checkpoint import ENCODER_START, save_model
from stofm.durable import check_folder, claim_folder, read_json, replacing, sweep, tree_digest, write_json, write_text
from stofm.errors import CheckpointError, ConfigError, DataError
from stofm.se2_transformer import SE2Transformer

RUN_KIND = "stofm-run/1"


@dataclass(frozen=True)
class Progress:
    """What a step reports."""

    stage: str
    step: int
    n_steps: int
    losses: dict[str, float]


@dataclass(frozen=True, eq=False)
class Callbacks:
    """What the caller wants to hear of: called on the first process only."""

    on_step: Callable[[Progress], None] = lambda _: None
    track: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()
    report: Callable[[str], None] = lambda _: None


SILENT = Callbacks()


def train(config: PretrainConfig, callbacks: Callbacks = SILENT) -> Path:
    """Run or finish a pretraining run; returns the folder of the model.

    Raises
    ------
    ConfigError
        If the output holds something else, or the processes do not divide the micro-batches.
    CheckpointError
        If the output holds a run of another configuration or corpus, or the encoder does not fit the vocabulary.
    """
    folder, corpus = Path(config.out), Corpus(config.corpus)
    check_folder(folder, RUN_KIND)
    if corpus.scales.scheme != "tissue":
        raise ConfigError(f"corpus {config.corpus}: found `scheme: {corpus.scales.scheme}`; training expects `tissue`. Build it again with that.")
    if config.se2_stage.displacement_weight and config.se2_transformer.geometry != "directional":
        raise ConfigError(
            f"se2_stage.displacement_weight: found {config.se2_stage.displacement_weight:g} with `geometry: {config.se2_transformer.geometry}`; "
            "expected `directional`, for distances point nowhere. Set `se2_transformer.geometry: directional`, or the weight to 0."
        )
    accelerator = _accelerator(config)
    if not accelerator.is_main_process:
        callbacks = SILENT
    _require_divisible(config, accelerator.num_processes)
    run = {"configuration": config.digest(exclude={"out", "corpus", "log_every", "save_every", "n_checkpoints"}), "corpus": corpus.corpus_id}
    _claim(folder, config, run, accelerator)
    if (folder / "model").is_dir():
        callbacks.report(f"run {folder} is complete")
        return folder / "model"

    encoder = _adapted_encoder(config, corpus, folder, run, accelerator, callbacks)
    view = _embedded_view(corpus, encoder, folder / "views" / "embedded", accelerator, callbacks)
    torch.manual_seed(config.seed + 1)
    transformer = SE2Transformer(config.se2_transformer)
    _run_stage(se2_stage(config.se2_stage, transformer, view, seed=config.seed), config, folder, run, accelerator, callbacks)
    if accelerator.is_main_process:
        inputs = {entry["slice_id"]: entry["input_sha256"] for entry in corpus.manifest["slices"]}
        trained_on = {**run, "vocabulary": corpus.vocab.sha256, "inputs": inputs}
        texts = {
            "gene_vocab.csv": corpus.vocab.to_csv(),
            GENE_TABLES: corpus.gene_tables.to_json(),
            "scales.json": corpus.scales.model_dump_json(indent=1),
            "README.md": model_card(config, corpus),
        }
        save_model(folder / "model", encoder.cpu(), transformer.cpu(), texts=texts, trained_on=trained_on)
    accelerator.wait_for_everyone()
    return folder / "model"


def _run_stage(stage: Stage, config: PretrainConfig, folder: Path, run: dict[str, str], accelerator: Accelerator, callbacks: Callbacks) -> None:
    """Train one stage to its end, from its last checkpoint if there is one; `stage.model` then holds the weights."""
    n_micro, n_ranks, rank = stage.config.n_micro_batches, accelerator.num_processes, accelerator.process_index
    optimizer = _optimizer(stage, stage.config.optim, accelerator.device)
    checkpoints, log = folder / "checkpoints", RunLog(folder / "losses.jsonl", is_writer=accelerator.is_main_process)
    start = resume(checkpoints, stage.name, stage.model, optimizer, run=run, warn=callbacks.report)
    log.rewind(stage.name, start)
    accelerator.wait_for_everyone()
    model, optimizer = accelerator.prepare(stage.model.train(), optimizer)
    order = Order(stage.n_units, config.seed)

    for step in range(start, stage.n_steps):
        began = time.perf_counter()
        mine = range(step * n_micro + rank, (step + 1) * n_micro, n_ranks)
        micro_batches = [stage.micro_batch([order[number * stage.units_each + unit] for unit in range(stage.units_each)]) for number in mine]
        waited = time.perf_counter() - began
        counts = _total([batch.counts() for batch in micro_batches], accelerator)  # over micro-batches and processes, before any loss
        sums = dict.fromkeys(counts, torch.zeros((), device=accelerator.device))
        for number, batch in zip(mine, micro_batches, strict=True):
            torch.manual_seed(torch_seed(config.seed, step, number))  # dropout follows the micro-batch, not the process
            with nullcontext() if number == mine[-1] else accelerator.no_sync(model):
                means = {name: value / max(1.0, counts[name]) for name, value in model(batch.to(accelerator.device)).items()}
                accelerator.backward(sum(stage.weights[name] * mean for name, mean in means.items()) * n_ranks)
            sums = {name: sums[name] + mean.detach() for name, mean in means.items()}
        losses = {name: float(accelerator.reduce(value, "sum")) for name, value in sums.items()}
        grad_norm = float(accelerator.clip_grad_norm_(model.parameters(), stage.config.optim.clip_norm))
        _require_finite({**losses, "gradient norm": grad_norm}, stage, step)
        lr = _learning_rate(stage.config.optim, step, stage.n_steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()

        callbacks.on_step(Progress(stage.name, step + 1, stage.n_steps, losses))
        is_last = step + 1 == stage.n_steps
        if (step + 1) % config.log_every == 0 or is_last:
            seconds = time.perf_counter() - began
            log.write(stage.name, step + 1, losses, grad_norm=grad_norm, lr=lr, seconds=seconds, data_wait_share=waited / seconds)
        if ((step + 1) % config.save_every == 0 or is_last) and accelerator.is_main_process:
            plain = accelerator.unwrap_model(model)
            save_checkpoint(checkpoints, stage.name, step + 1, plain, optimizer.optimizer, run=run, n_kept=config.n_checkpoints)
    accelerator.wait_for_everyone()
    accelerator.free_memory()


def _adapted_encoder(
    config: PretrainConfig, corpus: Corpus, folder: Path, run: dict[str, str], accelerator: Accelerator, callbacks: Callbacks
) -> CellEncoder:
    """The encoder after its stage, in evaluation mode; kept in the run's folder, beside the one it started as, with which it is compared."""
    done, start = folder / "cell_encoder", folder / ENCODER_START
    if not done.is_dir():
        torch.manual_seed(config.seed)
        encoder = _initial_encoder(config, corpus)
        if accelerator.is_main_process:
            with replacing(start) as aside:
                encoder.save(aside)
        if config.encoder_stage is not None:
            stage = encoder_stage(config.encoder_stage, encoder, corpus.token_view(), cls_token=corpus.vocab.cls_token, seed=config.seed)
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


def _embedded_view(corpus: Corpus, encoder: CellEncoder, folder: Path, accelerator: Accelerator, callbacks: Callbacks) -> View:
    """Embed the corpus with the finished encoder, every process its share of the slices, unless that was done before."""
    encoder_id = tree_digest(folder.parent.parent / "cell_encoder")
    if not (folder / "view.json").is_file():
        encoder.to(accelerator.device)

        def shards_of(slice_id: str) -> list[Shard]:
            embed = partial(embed_cells, encoder, cls_token=corpus.vocab.cls_token)
            return embedded_shards(corpus, folder, slice_id, embed, encoder_id=encoder_id)

        for slice_id in corpus.slice_ids[accelerator.process_index :: accelerator.num_processes]:
            with callbacks.track(f"{slice_id}: cell embeddings"):
                shards_of(slice_id)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shards = [shard for slice_id in corpus.slice_ids for shard in shards_of(slice_id)]  # all of them stand now
            write_view(folder, shards, made_from={"encoder": encoder_id, "corpus": corpus.corpus_id})
        accelerator.wait_for_everyone()
    return View(folder)


def _accelerator(config: PretrainConfig) -> Accelerator:
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=config.precision)
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


def _require_divisible(config: PretrainConfig, n_ranks: int) -> None:
    """Raise `ConfigError` unless every process gets as many micro-batches as any other."""
    for name, stage in (("encoder_stage", config.encoder_stage), ("se2_stage", config.se2_stage)):
        if stage is not None and stage.n_micro_batches % n_ranks:
            raise ConfigError(f"{name}.n_micro_batches: found {stage.n_micro_batches} for {n_ranks} processes; expected a multiple of their number.")


def _optimizer(stage: Stage, config: OptimConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW over the stage's model, on the device where a resume puts its state; matrices decay, biases, norms and single vectors do not."""
    stage.model.to(device)
    matrices = [p for p in stage.model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in stage.model.parameters() if p.requires_grad and p.ndim <= 1]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}], lr=config.lr)


def _learning_rate(config: OptimConfig, step: int, n_steps: int) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    n_warmup = max(1, round(config.warmup_share * n_steps))
    if step < n_warmup:
        return config.lr * (step + 1) / n_warmup
    return config.lr * (0.55 + 0.45 * math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


def _total(counts: list[dict[str, int]], accelerator: Accelerator) -> dict[str, float]:
    """Targets of each objective over all micro-batches of all processes."""
    sums = torch.tensor([[float(value) for value in one.values()] for one in counts], device=accelerator.device).sum(dim=0)
    return dict(zip(counts[0], accelerator.reduce(sums, "sum").tolist(), strict=True))


def _require_finite(values: dict[str, float], stage: Stage, step: int) -> None:
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise DataError(f"{stage.name} stage, step {step + 1}: {bad[0]} is {values[bad[0]]}; expected a number. Nothing was updated; "
                        "lower `optim.lr` and start again from the last checkpoint.")  # fmt: skip
