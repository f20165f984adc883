"""The stages as the loop sees them: how many units there are, what a micro-batch of them holds, and the objectives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import nn

from corpus.slice import IntArray
from corpus.view import View
from pretrain.config import EncoderStageConfig, SE2StageConfig, StageConfig
from pretrain.cost import contrast_flops, encoder_config_of, encoder_flops, gene_head_flops, se2_head_flops, transformer_flops
from pretrain.data import cells_of_chunk, chunk_sub_slices, generator
from pretrain.masking import mask_gene_tokens, mask_sub_slice
from pretrain.objectives import CellPairBatch, EncoderObjectives, MaskedBatch, SE2Objectives
from pretrain.telemetry import NOTHING, Work
from stofm.batch import collate
from stofm.cell_encoder import CellEncoder, gene_of
from stofm.fields import PAD_TOKEN
from stofm.gene_tokens import GeneTokens
from stofm.se2_transformer import SE2Transformer

ENCODER, SE2 = "encoder", "se2"


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage of pretraining.

    Attributes
    ----------
    n_units : int
        What an epoch goes through: chunks of cells, or sub-slices.
    units_each : int
        Units of a micro-batch.
    micro_batch : (units as (epoch, unit) pairs) -> batch with ``counts()`` and ``to(device)``
    weights : {objective: weight in the total}
    key : unit -> str
        Its record, by which it is named where something is wrong with it.
    work : batch -> Work
    embed : (model, batch) -> (n, D)
        What the model makes of the cells of a batch, to see whether it still tells them apart.
    validation : Stage, optional
        The same on slices that are held out; its model is not used.
    lr_shares : {part of the model: share of the learning rate}
    blocks : str
        Submodule of the model whose children run once in every forward pass; a sharded model gathers one of them at a time.
    refresh_every : int, optional
        Steps after which `refresh(border, step)` is called before data of `step` are read; `border` is the step itself, or where a run goes on
        after a stop, the last one before it at which it was called.
    begin : () -> None
        Sets the weights that the stage starts with; not called where it goes on from a checkpoint.
    """

    name: str
    config: StageConfig
    model: nn.Module
    n_units: int
    units_each: int
    micro_batch: Callable[[Sequence[tuple[int, int]]], Any]
    weights: dict[str, float]
    key: Callable[[int], str] = str
    work: Callable[[Any], Work] = lambda _: NOTHING
    embed: Callable[[Any, Any], torch.Tensor] | None = None
    validation: Stage | None = None
    lr_shares: dict[str, float] = field(default_factory=dict)
    blocks: str = ""
    refresh_every: int | None = None
    refresh: Callable[[int, int], None] = lambda *_: None
    begin: Callable[[], None] = lambda: None

    def border_before(self, step: int) -> int:
        """Return the step of the last refresh, `step` itself or one before it."""
        return step - step % (self.refresh_every or self.n_steps)

    def border_after(self, step: int) -> int:
        """Return the step of the next refresh, or the end."""
        return min(self.n_steps, self.border_before(step) + (self.refresh_every or self.n_steps))

    @property
    def n_steps(self) -> int:
        """Steps of the whole stage."""
        per_step = self.units_each * self.config.n_micro_batches
        steps = max(1, round(self.config.epochs * self.n_units / per_step))
        return min(steps, self.config.max_steps or steps)


def records_of(view: View, splits: Mapping[str, str], *wanted: str) -> list[int]:
    """Return the records of slices in one of these splits; `splits` gives that of every slice."""
    return [number for number, place in enumerate(view.places) if splits[place.slice_id] in wanted]


def encoder_stage(
    config: EncoderStageConfig, encoder: CellEncoder, view: View, *, cls_token: int, seed: int, records: Sequence[int] | None = None
) -> Stage:
    """Encoder adaptation on the gene tokens of a corpus, or of these records of it."""
    units = chunk_sub_slices(view, n_cells=config.cells_per_micro_batch, n_tokens=config.tokens_per_micro_batch)
    if records is not None:
        chosen = set(records)
        units = [unit for unit in units if unit[0] in chosen]

    def micro_batch(which: Sequence[tuple[int, int]]) -> CellPairBatch:
        ((epoch, number),) = which
        record, chunk, n_chunks = units[number]
        arrays = view.read(record)
        tokens = GeneTokens.of_record(arrays, with_levels=encoder.reads_levels)
        cells = cells_of_chunk(tokens.lengths, chunk, n_chunks, generator(seed, epoch, record))
        true = tokens.padded(cells, cls_token=cls_token)
        return masked_twice(true, cls_token=cls_token, rate=config.mask_rate, rng=generator(seed, epoch, record, chunk))

    model = EncoderObjectives(encoder, temperature=config.temperature)
    weights = {"mgm": config.mgm_weight, "contrastive": config.contrastive_weight}
    sizes = encoder_config_of(encoder)

    def work(batch: CellPairBatch) -> Work:
        lengths = (batch.tokens != PAD_TOKEN).sum(1).cpu().numpy()
        flops = encoder_flops(sizes, lengths, at_cls=False) + contrast_flops(len(lengths) // 2)
        flops += gene_head_flops(sizes, n_hidden=len(batch.hidden_tokens), n_ids=encoder.n_tokens)
        return Work(len(lengths) // 2, 0, int(lengths.sum()), flops.total)

    return Stage(
        ENCODER, config, model, len(units), 1, micro_batch, weights,
        key=lambda unit: view.places[units[unit][0]].key, work=work,
        embed=lambda model, batch: model.encoder(batch.tokens[: len(batch.tokens) // 2]), blocks="encoder.bert.encoder.layer",
    )  # fmt: skip


def masked_twice(true: IntArray, *, cls_token: int, rate: float, rng: Generator) -> CellPairBatch:
    """Return two passes of cells, (B, T) as `GeneTokens.padded` gives them, each with other genes hidden."""
    seen, is_hidden = zip(*(mask_gene_tokens(true, cls_token=cls_token, rate=rate, rng=rng) for _ in range(2)), strict=True)
    hidden = np.vstack(is_hidden)
    tokens, targets = (torch.from_numpy(one) for one in (np.vstack(seen), np.vstack([true, true])[hidden]))
    return CellPairBatch(tokens, torch.from_numpy(hidden), gene_of(targets))


def se2_stage(
    config: SE2StageConfig, transformer: SE2Transformer, view: View, *, seed: int, records: Sequence[int] | None = None,
    model: SE2Objectives | None = None,
) -> Stage:  # fmt: skip
    """Masked cell modeling, pairwise distance recovery and, on request, tissue context and displacements on the sub-slices of a corpus, or some."""
    records = range(len(view)) if records is None else records
    n_neighbors = transformer.config.n_neighbors

    def micro_batch(which: Sequence[tuple[int, int]]) -> MaskedBatch:
        drawn = [(view.read(records[unit]), generator(seed, epoch, records[unit])) for epoch, unit in which]
        masked = [mask_sub_slice(arrays, config, n_neighbors=n_neighbors, rng=rng) for arrays, rng in drawn]
        predicted = [np.flatnonzero(one.is_predicted) for one in masked]
        return MaskedBatch(
            seen=collate([one.seen for one in masked]),
            predicted=torch.from_numpy(np.concatenate([_with_number(b, cells[:, None]) for b, cells in enumerate(predicted)])),
            embeddings=torch.from_numpy(np.concatenate([one.embeddings[cells] for one, cells in zip(masked, predicted, strict=True)])),
            pairs=torch.from_numpy(np.concatenate([_with_number(b, one.pairs) for b, one in enumerate(masked)])),
            pair_distances=torch.from_numpy(np.concatenate([one.pair_distances for one in masked])),
            moved=torch.from_numpy(np.concatenate([_with_number(b, one.moved[:, None]) for b, one in enumerate(masked)])),
            displacements=torch.from_numpy(np.concatenate([one.displacements for one in masked])),
        )

    weights = {name: getattr(config, f"{name}_weight") for name in ("mcm", "pdr", "context", "own", "displacement")}
    model = SE2Objectives.of(config, transformer) if model is None else model
    sizes, n_contexts = transformer.config, config.n_contexts

    def work(batch: MaskedBatch) -> Work:
        cells, virtual = batch.seen.is_cell.sum(1).tolist(), batch.seen.is_virtual.sum(1).tolist()
        n_predicted, n_pairs = len(batch.predicted), len(batch.pairs)
        flops = se2_head_flops(sizes, n_cells=sum(cells), n_predicted=n_predicted, n_pairs=n_pairs, n_contexts=n_contexts)
        for n_cells, n_virtual in zip(cells, virtual, strict=True):
            flops += transformer_flops(sizes, n_cells=n_cells, n_virtual=n_virtual)
        return Work(sum(cells), len(cells), sum(cells) + sum(virtual), flops.total)

    return Stage(
        SE2, config, model, len(records), config.sub_slices_per_micro_batch, micro_batch, weights,
        key=lambda unit: view.places[records[unit]].key, work=work,
        embed=lambda model, batch: model.transformer(batch.seen).cell_repr[batch.seen.is_cell], blocks="transformer.layers",
    )  # fmt: skip


def _with_number(b: int, indices: np.ndarray) -> np.ndarray:
    """Put the number of the sub-slice in front of every row."""
    return np.hstack([np.full((len(indices), 1), b), indices])
