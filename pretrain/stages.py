"""The two stages as the loop sees them: how many units there are, what a micro-batch of them holds, and the objectives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from corpus.view import View
from pretrain.config import EncoderStageConfig, SE2StageConfig, StageConfig
from pretrain.data import cells_of_chunk, chunk_sub_slices, generator
from pretrain.masking import mask_gene_tokens, mask_sub_slice
from pretrain.objectives import CellPairBatch, EncoderObjectives, MaskedBatch, SE2Objectives
from stofm.batch import collate
from stofm.cell_encoder import CellEncoder
from stofm.fields import GENE_TOKENS, N_TOKENS
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
    """

    name: str
    config: StageConfig
    model: nn.Module
    n_units: int
    units_each: int
    micro_batch: Callable[[Sequence[tuple[int, int]]], Any]
    weights: dict[str, float]

    @property
    def n_steps(self) -> int:
        """Steps of the whole stage."""
        per_step = self.units_each * self.config.n_micro_batches
        steps = max(1, round(self.config.epochs * self.n_units / per_step))
        return min(steps, self.config.max_steps or steps)


def encoder_stage(config: EncoderStageConfig, encoder: CellEncoder, view: View, *, cls_token: int, seed: int) -> Stage:
    """Encoder adaptation on the gene tokens of a corpus."""
    units = chunk_sub_slices(view, n_cells=config.cells_per_micro_batch, n_tokens=config.tokens_per_micro_batch)

    def micro_batch(which: Sequence[tuple[int, int]]) -> CellPairBatch:
        ((epoch, number),) = which
        record, chunk, n_chunks = units[number]
        arrays = view.read(record)
        tokens = GeneTokens.of_lengths(arrays[GENE_TOKENS], arrays[N_TOKENS])
        cells = cells_of_chunk(tokens.lengths, chunk, n_chunks, generator(seed, epoch, record))
        true = tokens.padded(cells, cls_token=cls_token)
        rng = generator(seed, epoch, record, chunk)
        seen, is_hidden = zip(*(mask_gene_tokens(true, cls_token=cls_token, rate=config.mask_rate, rng=rng) for _ in range(2)), strict=True)
        hidden = np.vstack(is_hidden)
        return CellPairBatch(*map(torch.from_numpy, (np.vstack(seen), hidden, np.vstack([true, true])[hidden])))

    model = EncoderObjectives(encoder, temperature=config.temperature)
    weights = {"mgm": config.mgm_weight, "contrastive": config.contrastive_weight}
    return Stage(ENCODER, config, model, len(units), 1, micro_batch, weights)


def se2_stage(config: SE2StageConfig, transformer: SE2Transformer, view: View, *, seed: int) -> Stage:
    """Masked cell modeling, pairwise distance recovery and tissue context on the sub-slices of a corpus."""
    n_neighbors = transformer.config.n_neighbors

    def micro_batch(which: Sequence[tuple[int, int]]) -> MaskedBatch:
        masked = [mask_sub_slice(view.read(unit), config, n_neighbors=n_neighbors, rng=generator(seed, epoch, unit)) for epoch, unit in which]
        predicted = [np.flatnonzero(one.is_predicted) for one in masked]
        return MaskedBatch(
            seen=collate([one.seen for one in masked]),
            predicted=torch.from_numpy(np.concatenate([_with_number(b, cells[:, None]) for b, cells in enumerate(predicted)])),
            embeddings=torch.from_numpy(np.concatenate([one.embeddings[cells] for one, cells in zip(masked, predicted, strict=True)])),
            pairs=torch.from_numpy(np.concatenate([_with_number(b, one.pairs) for b, one in enumerate(masked)])),
            pair_distances=torch.from_numpy(np.concatenate([one.pair_distances for one in masked])),
        )

    weights = {"mcm": config.mcm_weight, "pdr": config.pdr_weight, "context": config.context_weight}
    model = SE2Objectives(transformer, context_um=config.context_um if config.context_weight else None)
    return Stage(SE2, config, model, len(view), config.sub_slices_per_micro_batch, micro_batch, weights)


def _with_number(b: int, indices: np.ndarray) -> np.ndarray:
    """Put the number of the sub-slice in front of every row."""
    return np.hstack([np.full((len(indices), 1), b), indices])
