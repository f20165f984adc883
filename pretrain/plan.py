"""What a run will take, before anything starts: steps, cells, tokens, operations, memory, hours, disk; and afterwards, what it did take.

Steps are those of the trainer's own stages. Work is that of a sample of micro-batches (encoder), or follows from sizes (the SE(2) and joint
stages, whose embeddings do not exist yet). Hours are operations over a share of the device's peak.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from corpus.store import Corpus
from corpus.view import View
from pretrain.config import PretrainConfig, StageConfig
from pretrain.cost import (
    FLOAT,
    encoder_activation_bytes,
    encoder_config_of,
    encoder_flops,
    n_parameters,
    se2_head_flops,
    training_bytes,
    transformer_activation_bytes,
    transformer_flops,
)
from pretrain.devices import GB, TERA, Device
from pretrain.masking import SPACING_NEIGHBORS
from pretrain.objectives import SE2Objectives
from pretrain.stages import Stage, encoder_stage, records_of
from stofm.cell_encoder import CellEncoder
from stofm.durable import read_json
from stofm.fields import EMBEDDING_DIM, N_TOKENS
from stofm.se2_transformer import SE2Transformer

N_SAMPLED = 32  # micro-batches, or records, that are looked at
BYTES_PER_EMBEDDED_CELL = 2 * EMBEDDING_DIM + 4 + 8 + 2  # float16 embedding, row, place, virtual cell
BYTES_OF_TEXTS = 10e6  # gene tables and vocabulary of the model, log, TensorBoard
HOUR = 3600.0


@dataclass(frozen=True)
class StagePlan:
    """One stage. Numbers are over the whole stage and all devices, memory that of one device."""

    stage: str
    steps: int
    cells: float
    sub_slices: float
    tokens: float
    flops: float
    n_trained: int
    memory_gb: float

    def hours(self, device: Device, *, precision: str, share: float, n_devices: int) -> float:
        """Time at a share of the peak."""
        return self.flops / (device.tflops[precision] * TERA * share * n_devices) / HOUR


@dataclass(frozen=True)
class RunPlan:
    """A run: its stages, what embedding the corpus between them takes, and the disk that it needs."""

    stages: list[StagePlan]
    embedding_flops: float
    disk_gb: float


@dataclass(frozen=True, eq=False)
class _Sizes:
    """What the models and the corpus are, without a weight in memory."""

    config: PretrainConfig
    corpus: Corpus
    view: View
    records: list[int]
    encoder: CellEncoder
    objectives: SE2Objectives
    n_shards: int

    def in_parts(self, n_trained: int, blocks: nn.Module | None = None) -> dict[str, int]:
        """What `training_bytes` has to know of a sharded model, of which `blocks` are gathered one at a time."""
        if self.n_shards == 1:
            return {}
        n_waiting = 0 if blocks is None else n_parameters(*list(blocks.children())[1:])
        return {"n_shards": self.n_shards, "n_gathered": n_trained - n_waiting}

    def sample(self, n: int) -> np.ndarray:
        """Numbers of at most `N_SAMPLED` of n things, spread evenly."""
        return np.unique(np.linspace(0, n - 1, min(n, N_SAMPLED)).astype(int))

    def lengths(self) -> np.ndarray:
        """Gene tokens and `<cls>` of the cells of some records."""
        found = [self.view.read(self.records[number])[N_TOKENS] for number in self.sample(len(self.records))]
        return np.concatenate(found).astype(np.int64) + 1


def plan_run(config: PretrainConfig, corpus: Corpus, *, n_devices: int = 1) -> RunPlan:
    """Foresee a run; nothing is trained and nothing is written."""
    sizes = _sizes(config, corpus, n_shards=1 if config.sharding == "none" else n_devices)
    stages = [_plan_encoder(sizes, config.encoder_stage)] if config.encoder_stage is not None else []
    stages.append(_plan_se2(sizes, config.se2_stage, name="se2"))
    if config.joint_stage is not None:
        stages.append(_plan_joint(sizes))
    lengths, n_cells = sizes.lengths(), sum(place.n_cells for place in sizes.view.places)
    embedding = encoder_flops(encoder_config_of(sizes.encoder), lengths).forward * n_cells / len(lengths)
    n_embeddings = 1 if config.joint_stage is None else 1 + _refreshes(config, stages[-1].steps, len(sizes.records))
    return RunPlan(stages, embedding * n_embeddings, _disk_bytes(sizes, n_cells, stages) / GB)


def _sizes(config: PretrainConfig, corpus: Corpus, *, n_shards: int) -> _Sizes:
    n_tokens, max_tokens = corpus.vocab.n_tokens, corpus.scales.rank_value.max_tokens
    with torch.device("meta"):
        if config.cell_encoder_folder is None:
            encoder = CellEncoder.from_scratch(config.cell_encoder, n_tokens=n_tokens, max_tokens=max_tokens)
        else:
            from transformers import BertConfig

            encoder = CellEncoder(BertConfig.from_pretrained(Path(config.cell_encoder_folder) / "cell_bert"))
        objectives = SE2Objectives.of(config.se2_stage, SE2Transformer(config.se2_transformer))
    view = corpus.token_view()
    splits = {entry["slice_id"]: entry.get("split", "") for entry in corpus.manifest["slices"]}
    return _Sizes(config, corpus, view, records_of(view, splits, "", "train"), encoder, objectives, n_shards)


def _plan_encoder(sizes: _Sizes, config: Any) -> StagePlan:
    stage = encoder_stage(config, sizes.encoder, sizes.view, cls_token=sizes.corpus.vocab.cls_token, seed=sizes.config.seed, records=sizes.records)
    batches = [stage.micro_batch([(0, int(unit))]) for unit in sizes.sample(stage.n_units)]
    work = [stage.work(batch) for batch in batches]
    n_units = stage.n_steps * stage.units_each * config.n_micro_batches
    cells, tokens, flops = (n_units * float(np.mean([getattr(one, name) for one in work])) for name in ("cells", "tokens", "flops"))
    n_trained = n_parameters(stage.model)
    n_hidden = max(len(batch.hidden_tokens) for batch in batches)
    activations = encoder_activation_bytes(encoder_config_of(sizes.encoder), max(batch.tokens.numel() for batch in batches), at_cls=False)
    activations += 3 * FLOAT * n_hidden * sizes.encoder.n_tokens  # scores of all genes, their softmax, its gradient
    in_parts = sizes.in_parts(n_trained, sizes.encoder.bert.encoder.layer)
    memory = training_bytes(n_trained=n_trained, n_frozen=0, activation_bytes=activations, **in_parts)
    return StagePlan("encoder", stage.n_steps, cells, 0, tokens, flops, n_trained, memory / GB)


def _plan_se2(sizes: _Sizes, config: StageConfig, *, name: str) -> StagePlan:
    """A stage of sub-slices; `config` gives the steps, the SE(2) stage's settings what is asked."""
    settings, transformer = sizes.config.se2_stage, sizes.config.se2_transformer
    places = [sizes.view.places[record] for record in sizes.records]
    virtual = _virtual_cells(sizes.corpus)
    each = settings.sub_slices_per_micro_batch
    steps = Stage(name, config, sizes.objectives, len(places), each, lambda _: None, {}).n_steps
    flops, memory = [], []
    for place in (places[number] for number in sizes.sample(len(places))):
        n_cells, n_virtual = place.n_cells, virtual[place.slice_id]
        cost = transformer_flops(transformer, n_cells=n_cells, n_virtual=n_virtual, frozen_encoder=name == "se2")
        n_predicted = (settings.mask_rate + settings.keep_rate) * n_cells
        n_pairs = settings.move_rate * n_cells * max(transformer.n_neighbors, SPACING_NEIGHBORS)
        cost += se2_head_flops(transformer, n_cells=n_cells, n_predicted=n_predicted, n_pairs=n_pairs, n_contexts=settings.n_contexts)
        flops.append(cost.total)
        memory.append(transformer_activation_bytes(transformer, n_cells=n_cells, n_virtual=n_virtual, n_contexts=settings.n_contexts))
    n_units = steps * each * config.n_micro_batches
    n_trained, cells = n_parameters(sizes.objectives), n_units * float(np.mean([place.n_cells for place in places]))
    tokens = cells + n_units * float(np.mean([virtual[place.slice_id] for place in places]))
    in_parts, n_frozen = sizes.in_parts(n_trained, sizes.objectives.transformer.layers), n_parameters(sizes.encoder)
    need = training_bytes(n_trained=n_trained, n_frozen=n_frozen, activation_bytes=each * max(memory), **in_parts)
    return StagePlan(name, steps, cells, n_units, tokens, n_units * float(np.mean(flops)), n_trained, need / GB)


def _plan_joint(sizes: _Sizes) -> StagePlan:
    """The SE(2) stage, and every visible cell through the encoder with its gradient; what is computed again is counted, for it takes time."""
    config = sizes.config.joint_stage
    assert config is not None
    of_se2, lengths = _plan_se2(sizes, config, name="joint"), sizes.lengths()
    encoder = encoder_config_of(sizes.encoder)
    visible = of_se2.cells * (1 - sizes.config.se2_stage.mask_rate)
    cost = encoder_flops(encoder, lengths) * (visible / len(lengths))
    again = cost.forward if config.tokens_per_chunk is not None else 0.0
    longest = max(sizes.view.places[record].n_cells for record in sizes.records) * float(lengths.mean())
    encoder_bytes = encoder_activation_bytes(encoder, min(config.tokens_per_chunk or longest, longest))
    n_encoder = n_parameters(sizes.encoder)
    n_trained = of_se2.n_trained + n_encoder
    more = training_bytes(n_trained=n_encoder, n_frozen=0, activation_bytes=encoder_bytes, **sizes.in_parts(n_encoder)) / GB
    tokens = of_se2.tokens + visible * float(lengths.mean())
    flops, memory = of_se2.flops + cost.total + again, of_se2.memory_gb + more - FLOAT * n_encoder / GB
    return StagePlan("joint", of_se2.steps, of_se2.cells, of_se2.sub_slices, tokens, flops, n_trained, memory)


def _virtual_cells(corpus: Corpus) -> dict[str, int]:
    """Virtual cells of every slice."""
    return {entry["slice_id"]: corpus.scales.virtual_cells.n_virtual(entry["n_cells"]) for entry in corpus.manifest["slices"]}


def _refreshes(config: PretrainConfig, steps: int, n_records: int) -> int:
    """How often the joint stage embeds the corpus."""
    assert config.joint_stage is not None
    per_epoch = max(1, n_records // (config.se2_stage.sub_slices_per_micro_batch * config.joint_stage.n_micro_batches))
    return -(-steps // (config.joint_stage.refresh_every or per_epoch))


def _disk_bytes(sizes: _Sizes, n_cells: int, stages: list[StagePlan]) -> float:
    """Checkpoints kept (the newest, the best, and one being written), embedded views, encoder and model; never more than this at a time."""
    kept = sizes.config.n_checkpoints + 2
    checkpoints = sum(kept * 3 * FLOAT * stage.n_trained for stage in stages)  # weights and two moments
    n_virtual = max(_virtual_cells(sizes.corpus).values())
    view = n_cells * BYTES_PER_EMBEDDED_CELL + len(sizes.view) * n_virtual * (FLOAT * EMBEDDING_DIM + 12)
    n_views = 1 if sizes.config.joint_stage is None else 3
    return BYTES_OF_TEXTS + checkpoints + n_views * view + 3 * FLOAT * n_parameters(sizes.encoder, sizes.objectives)


def facts(lines: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return what a run took so far, {stage: {"steps", "hours", "cells", "memory_gb", "peak_share"}}, from the lines of its log.

    Hours are those of steps, by the mean of what each line measured; stops, embedding and probes are not in them.
    """
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(line["stage"] for line in lines):
        own = [line for line in lines if line["stage"] == name]
        steps = np.diff([0, *(line["step"] for line in own)])
        hours = float(np.dot(steps, [line["seconds"] for line in own])) / HOUR
        cells = float(np.dot(steps, [line["seconds"] * line["cells_per_second"] for line in own]))
        share = float(np.average([line["peak_share"] for line in own], weights=steps))
        memory = max(line["memory_mb"] for line in own) * 2**20 / GB
        found[name] = {"steps": own[-1]["step"], "hours": hours, "cells": cells, "memory_gb": memory, "peak_share": share}
    return found


def disk_gb(run: Path) -> float:
    """Return the size of all files of a run."""
    return sum(file.stat().st_size for file in run.rglob("*") if file.is_file()) / GB


def belongs(run: Path, corpus: Corpus) -> bool:
    """Tell whether a folder holds a run on this corpus."""
    return (run / "run.json").is_file() and read_json(run / "run.json").get("corpus") == corpus.corpus_id


def total_hours(plan: RunPlan, device: Device, *, precision: str, share: Mapping[str, float], n_devices: int) -> float:
    """Hours of all stages, each at its own share of the peak, and of embedding the corpus at the best of these."""
    of_stages = sum(one.hours(device, precision=precision, share=share[one.stage], n_devices=n_devices) for one in plan.stages)
    return of_stages + plan.embedding_flops / (device.tflops[precision] * TERA * max(share.values()) * n_devices) / HOUR
