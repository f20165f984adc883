"""Continued pretraining: a model goes on from its weights on another corpus of its own genes, and is measured before and after.

A model folder holds no heads of the objectives, so they are trained anew first, the model frozen; what is measured then is "before".
Stages, checkpoints, log and resume are those of pretraining; one process does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import nn

from corpus.store import Corpus
from pretrain.callbacks import SILENT, Callbacks
from pretrain.config import EncoderStageConfig, OptimConfig, PretrainConfig, SE2StageConfig, StageConfig
from pretrain.embedded import embedded_view
from pretrain.engine import run_stage
from pretrain.launch import RUN_KIND, claim_run, make_accelerator
from pretrain.lora import add_adapters, merge_adapters, save_adapters
from pretrain.measure import mean_losses
from pretrain.model_card import model_card
from pretrain.run_log import read_run_log, steps_of
from pretrain.stages import Stage, encoder_stage, se2_stage
from pretrain.train import require_trainable
from stofm.cell_encoder import CellEncoder
from stofm.checkpoint import Model, save_model
from stofm.config import FrozenModel
from stofm.durable import check_folder, read_json, replacing, write_json
from stofm.errors import ConfigError, DataError
from stofm.se2_transformer import SE2Transformer

RATE = {"full": 1e-4, "lora": 1e-3}  # adapters start at nothing and take larger steps
BEFORE, AFTER = "before", "after"

Measured = dict[str, dict[str, dict[str, float]]]  # before or after -> what it was measured on -> objective -> loss


class AdaptConfig(FrozenModel):
    """How a model is adapted. `adapt_config` gives the defaults of each method."""

    method: Literal["full", "lora"] = Field("full", description="Train all weights, or adapters on the linear layers.")
    rank: int = Field(8, ge=1, description="Of the adapters (lora).")
    hold_out: float = Field(0.2, ge=0, lt=1, description="Share of every slice, in one block, that is measured on and not trained on; 0: none.")
    seed: int = 0
    head_steps: int = Field(100, ge=1, description="Steps in which the heads of the objectives are learned first, the model frozen.")
    head_lr: float = Field(1e-3, gt=0)
    encoder_stage: EncoderStageConfig | None = Field(default_factory=EncoderStageConfig, description="null: the cell encoder stays as it is.")
    se2_stage: SE2StageConfig = Field(default_factory=SE2StageConfig)
    precision: Literal["no", "bf16"] = "no"
    log_every: int = Field(1, ge=1)
    save_every: int = Field(100, ge=1)


def adapt_config(method: Literal["full", "lora"]) -> AdaptConfig:
    """Return the default settings of a method."""
    optim = OptimConfig(lr=RATE[method])
    return AdaptConfig(method=method, encoder_stage=EncoderStageConfig(epochs=1, optim=optim), se2_stage=SE2StageConfig(epochs=4, optim=optim))


@dataclass(frozen=True, eq=False)
class _Run:
    """What every part of an adaptation needs."""

    config: AdaptConfig
    pretraining: PretrainConfig
    base: Model
    training: Corpus
    measured_on: Mapping[str, Corpus]
    inputs: Mapping[str, str]
    folder: Path
    identity: dict[str, str]
    accelerator: Accelerator
    callbacks: Callbacks

    def note(self, when: str, stage_on: Callable[[Corpus, str], Stage], trained: Stage) -> None:
        """Measure the trained stage's model on every corpus of `measured_on`, and write that down."""
        found = read_measured(self.folder)
        for name, corpus in self.measured_on.items():
            stage = replace(stage_on(corpus, name), model=trained.model)
            found.setdefault(when, {}).setdefault(name, {}).update(mean_losses(stage, device=self.accelerator.device))
        write_json(self.folder / "measured.json", found)


def adapt(
    config: AdaptConfig,
    base: Model,
    training: Corpus,
    measured_on: Mapping[str, Corpus],
    *,
    inputs: Mapping[str, str],
    folder: Path,
    result: Path,
    callbacks: Callbacks = SILENT,
) -> Path:
    """Go on training `base` on a corpus; writes a model folder to `result`, adapters and losses (`read_measured`) into the run's `folder`.

    Parameters
    ----------
    measured_on : {name: corpus}
        Corpora of the same vocabulary on which the losses are measured before and after; they are not trained on.
    inputs : {name: sha256}
        The files that the corpus holds, or parts of which it holds; whether a slice was seen is told by them.

    Raises
    ------
    ConfigError
        If the model is of another scheme than its corpus, or the folder holds something else.
    CheckpointError
        If the folder holds an adaptation of other settings, slices or weights.
    """
    require_adaptable(base, training)
    check_folder(folder, RUN_KIND)
    pretraining = PretrainConfig(
        corpus=str(training.folder), out=str(folder), seed=config.seed, encoder_stage=config.encoder_stage, se2_stage=config.se2_stage,
        se2_transformer=base.se2_transformer.config, precision=config.precision, log_every=config.log_every, save_every=config.save_every,
    )  # fmt: skip
    require_trainable(pretraining, training)
    accelerator = make_accelerator(pretraining)
    identity = {"configuration": config.digest(exclude={"log_every", "save_every"}), "corpus": training.corpus_id, "model": base.weights_sha256}
    claim_run(folder, pretraining, identity, accelerator)
    run = _Run(config, pretraining, base, training, measured_on, inputs, folder, identity, accelerator, callbacks)
    encoders = {BEFORE: _kept_encoder(run, BEFORE, lambda: base.cell_encoder), AFTER: _kept_encoder(run, AFTER, lambda: _adapted_encoder(run))}
    transformer = _adapted_transformer(run, encoders)
    _save(run, encoders[AFTER], transformer, result)
    return result


def require_adaptable(base: Model, training: Corpus) -> None:
    """Raise unless the corpus was built with the model's vocabulary and scale settings."""
    if base.se2_transformer.config.scheme != "stofm":
        raise ConfigError(f"model {base.folder}: an imported one, of `scheme: published`; expected one trained here. Train such a model first.")
    if base.cell_encoder.n_tokens != training.vocab.n_tokens:
        raise DataError(f"corpus {training.where}: {training.vocab.n_tokens} ids; expected {base.cell_encoder.n_tokens}, those of the model.")


def read_measured(folder: Path) -> Measured:
    """Return the losses that an adaptation measured so far."""
    return read_json(folder / "measured.json") if (folder / "measured.json").is_file() else {}


def _kept_encoder(run: _Run, when: str, make: Callable[[], CellEncoder]) -> CellEncoder:
    """The encoder before or after its stage, in evaluation mode; kept in the run's folder, and made only once."""
    kept = run.folder / when / "cell_encoder"
    if not kept.is_dir():
        encoder = make()
        with replacing(kept) as aside:
            encoder.cpu().save(aside)
    return CellEncoder.from_folder(kept).eval().requires_grad_(False)


def _adapted_encoder(run: _Run) -> CellEncoder:
    """Go on with the encoder stage."""
    config, encoder = run.config, CellEncoder.from_folder(run.folder / BEFORE / "cell_encoder")
    if config.encoder_stage is None:
        return encoder
    make = partial(encoder_stage, config.encoder_stage, encoder, cls_token=run.training.vocab.cls_token, seed=config.seed)

    def on(corpus: Corpus, _: str) -> Stage:
        return make(corpus.token_view())

    torch.manual_seed(config.seed)  # of the new heads
    stage = on(run.training, "")
    _learn_heads(run, stage, encoder)
    run.note(BEFORE, on, stage)
    _go_on(run, stage, encoder)
    run.note(AFTER, on, stage)
    return encoder


def _adapted_transformer(run: _Run, encoders: Mapping[str, CellEncoder]) -> SE2Transformer:
    """Go on with the SE(2) stage: heads on the embeddings of the encoder as it was, all of it on those of the adapted one."""
    transformer = run.base.se2_transformer

    def on(when: str) -> Callable[[Corpus, str], Stage]:
        def stage_on(corpus: Corpus, name: str) -> Stage:
            view = embedded_view(corpus, encoders[when], run.folder / when / "views" / (name or "training"), run.accelerator, run.callbacks)
            return se2_stage(run.config.se2_stage, transformer, view, seed=run.config.seed)

        return stage_on

    torch.manual_seed(run.config.seed + 1)
    stage = on(BEFORE)(run.training, "")
    _learn_heads(run, stage, transformer)
    run.note(BEFORE, on(BEFORE), stage)
    stage = replace(on(AFTER)(run.training, ""), model=stage.model)
    _go_on(run, stage, transformer)
    run.note(AFTER, on(AFTER), stage)
    return transformer


def _learn_heads(run: _Run, stage: Stage, body: nn.Module) -> None:
    """Train what is not `body`, which stays as it is."""
    body.requires_grad_(False)
    optim = stage.config.optim.model_copy(update={"lr": run.config.head_lr})
    config = _lasting(stage, run.config.head_steps).model_copy(update={"optim": optim})
    _train(run, replace(stage, name=f"{stage.name}_heads", config=config))


def _go_on(run: _Run, stage: Stage, body: nn.Module) -> None:
    """Train heads and body, or heads and adapters, which are then part of the body."""
    if run.config.method == "full":
        body.requires_grad_(True)
        _train(run, stage)
        return
    adapted = add_adapters(body, rank=run.config.rank, seed=run.config.seed)
    _train(run, stage)
    body.cpu()
    save_adapters(adapted, run.folder / "adapters" / stage.name)
    merge_adapters(body)


def _train(run: _Run, stage: Stage) -> None:
    run_stage(stage, run.pretraining, run.folder, run.identity, run.accelerator, run.callbacks)


def _lasting(stage: Stage, n_steps: int) -> StageConfig:
    """The settings of a stage, for exactly so many steps."""
    epochs = n_steps * stage.units_each * stage.config.n_micro_batches / stage.n_units
    return stage.config.model_copy(update={"epochs": epochs, "max_steps": n_steps})


def _save(run: _Run, encoder: CellEncoder, transformer: SE2Transformer, result: Path) -> None:
    base, corpus = run.base, run.training
    inputs = {**base.meta.trained_on.get("inputs", {}), **{f"adapted/{name}": sha256 for name, sha256 in run.inputs.items()}}
    identity = {name: run.identity[name] for name in ("configuration", "corpus")}
    trained_on = {**identity, "vocabulary": corpus.vocab.sha256, "inputs": inputs, "adapted_from": base.weights_sha256}
    texts = {name: (base.folder / name).read_text(encoding="utf-8") for name in ("gene_vocab.csv", "gene_tables.json", "scales.json")
             if (base.folder / name).is_file()}  # fmt: skip
    steps = steps_of(read_run_log(run.folder / "losses.jsonl"))
    texts["README.md"] = model_card(run.pretraining, corpus, steps, adapted_from=base.weights_sha256, licence=base.meta.licence)
    save_model(result, encoder.cpu(), transformer.cpu(), texts=texts, trained_on=trained_on, licence=base.meta.licence)
