"""From a corpus to a model: adapt the cell encoder, embed the corpus with it, train the SE(2) transformer, then both together.

A run is one folder. Started again, it goes on where its last whole checkpoint stands and ends as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from corpus.gene_ids import GENE_TABLES
from corpus.store import Corpus
from corpus.view import View
from pretrain.callbacks import SILENT, Callbacks
from pretrain.config import PretrainConfig
from pretrain.embedded import embedded_view, refreshed_view
from pretrain.encoder_init import start_from_coexpression
from pretrain.engine import run_stage
from pretrain.joint import joint_stage
from pretrain.launch import RUN_KIND, claim_run, make_accelerator, require_divisible, require_shardable
from pretrain.measure import evaluating
from pretrain.model_card import model_card
from pretrain.objectives import SE2Objectives
from pretrain.run_log import read_run_log, steps_of
from pretrain.se2_init import fit_heads, start_from_surroundings
from pretrain.stages import Stage, encoder_stage, records_of, se2_stage
from pretrain.stopping import stop_requests
from pretrain.trackers import require_trackers
from stofm.cell_encoder import CellEncoder
from stofm.checkpoint import ENCODER_START, save_model
from stofm.durable import check_folder, replacing
from stofm.errors import CheckpointError, ConfigError, DataError
from stofm.se2_transformer import SE2Transformer

UNRELATED = {
    "out",
    "corpus",
    "sharding",
    "log_every",
    "save_every",
    "n_checkpoints",
    "n_validation",
    "watch_every",
    "probe_every",
    "trackers",
}  # to what is learned


@stop_requests()
def train(config: PretrainConfig, callbacks: Callbacks = SILENT) -> Path:
    """Run or finish a pretraining run; returns the folder of the model.

    Raises
    ------
    ConfigError
        If the output holds something else, the processes do not divide the micro-batches, or a sharded stage is to be compiled.
    CheckpointError
        If the output holds a run of another configuration, corpus or vocabulary, or the encoder does not fit the vocabulary.
    Stopped
        If SIGTERM or SIGUSR1 came; the same command goes on.
    """
    folder, corpus = Path(config.out), Corpus(config.corpus)
    check_folder(folder, RUN_KIND)
    require_trainable(config, corpus)
    require_trackers(config.trackers)
    require_shardable(config)
    accelerator = make_accelerator(config)
    if not accelerator.is_main_process:
        callbacks = SILENT
    require_divisible(config, accelerator.num_processes)
    run = {"configuration": config.digest(exclude=UNRELATED), "corpus": corpus.corpus_id, "vocabulary": corpus.vocab.sha256}
    claim_run(folder, config, run, accelerator)
    if (folder / "model").is_dir():
        callbacks.report(f"run {folder} is complete")
        return folder / "model"

    splits = {entry["slice_id"]: entry.get("split", "") for entry in corpus.manifest["slices"]}
    encoder = _adapted_encoder(config, corpus, splits, folder, run, accelerator, callbacks)
    view = embedded_view(corpus, encoder, folder / "views" / "embedded", accelerator, callbacks)
    torch.manual_seed(config.seed + 1)
    transformer = SE2Transformer(config.se2_transformer)

    def probe() -> dict[str, float]:
        with evaluating(encoder, transformer):
            return callbacks.probe(corpus, encoder, transformer)

    objectives = SE2Objectives.of(config.se2_stage, transformer)

    def begin() -> None:
        with callbacks.track("SE(2) transformer: start"):
            start_from_surroundings(transformer, view, seed=config.seed)
            fit_heads(objectives, view, seed=config.seed)

    stage = _with_validation(partial(se2_stage, config.se2_stage, transformer, view, seed=config.seed, model=objectives), view, splits)
    run_stage(replace(stage, begin=begin), config, folder, run, accelerator, callbacks, probe=probe)
    if config.joint_stage is not None:

        def view_at(border: int, step: int) -> View:
            return refreshed_view(corpus, encoder, folder / "views", border, step, accelerator, callbacks)

        joint = _with_validation(
            partial(joint_stage, config.joint_stage, config.se2_stage, encoder.requires_grad_(True), objectives, corpus.token_view(), view,
                    make_view=view_at, cls_token=corpus.vocab.cls_token, seed=config.seed), view, splits,
        )  # fmt: skip
        run_stage(joint, config, folder, run, accelerator, callbacks, probe=probe)
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
            run_stage(stage, config, folder, run, accelerator, callbacks)
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


def require_trainable(config: PretrainConfig, corpus: Corpus) -> None:
    """Raise `ConfigError` if corpus, geometry and objectives do not go together."""
    if corpus.scales.scheme != "tissue":
        raise ConfigError(f"corpus {config.corpus}: found `scheme: {corpus.scales.scheme}`; training expects `tissue`. Build it again with that.")
    if config.se2_stage.displacement_weight and config.se2_transformer.geometry != "directional":
        raise ConfigError(
            f"se2_stage.displacement_weight: found {config.se2_stage.displacement_weight:g} with `geometry: {config.se2_transformer.geometry}`; "
            "expected `directional`, for distances point nowhere. Set `se2_transformer.geometry: directional`, or the weight to 0."
        )
