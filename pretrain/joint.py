"""Joint stage: the cell encoder trained through the SE(2) transformer, which until then read embeddings that no gradient reached.

Nothing can be won by making embeddings alike: every target (hidden embeddings, surroundings) is of the encoder as it stood when the stage
began, and stays. What the transformer reads is live: visible cells are embedded at every step, chunk by chunk, each chunk computed again for its
gradient, so that memory holds one chunk. Hidden cells are not embedded at all. Virtual cells, means over whole slices, are those of
the encoder at the last refresh.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from corpus.view import View
from pretrain.config import JointStageConfig, SE2StageConfig
from pretrain.cost import encoder_config_of, encoder_flops
from pretrain.objectives import MaskedBatch, SE2Objectives, Sums
from pretrain.stages import Stage, se2_stage
from pretrain.telemetry import Work
from stofm.batch import SubSliceBatch
from stofm.cell_encoder import CellEncoder, batches_by_length
from stofm.errors import DataError
from stofm.fields import N_TOKENS, PAD_TOKEN, ROWS
from stofm.gene_tokens import GeneTokens

JOINT = "joint"


@dataclass(frozen=True, eq=False)
class JointBatch:
    """Masked sub-slices, and the gene tokens of the cells that are seen in them.

    Attributes
    ----------
    masked : MaskedBatch
        The truth, all of it of the encoder at the beginning.
    seen : SubSliceBatch
        What the model reads, before the visible cells are embedded.
    chunks : tuple of (b, T) int64
        Gene tokens, `<cls>` first and padded at the end.
    places : tuple of (b, 2) int64
        Sub-slice and cell of each.
    """

    masked: MaskedBatch
    seen: SubSliceBatch
    chunks: tuple[Tensor, ...]
    places: tuple[Tensor, ...]

    def counts(self) -> dict[str, int]:
        """Targets of each objective."""
        return self.masked.counts()

    def to(self, device: torch.device) -> JointBatch:
        """Return the same on `device`."""
        chunks, places = (tuple(one.to(device) for one in some) for some in (self.chunks, self.places))
        return JointBatch(self.masked.to(device), self.seen.to(device), chunks, places)


class JointObjectives(nn.Module):
    """The objectives of the SE(2) stage, read through the cell encoder."""

    def __init__(self, encoder: CellEncoder, objectives: SE2Objectives, *, recompute: bool) -> None:
        super().__init__()
        self.encoder, self.objectives, self.recompute = encoder, objectives, recompute

    def live(self, batch: JointBatch) -> SubSliceBatch:
        """Return what the transformer reads, the visible cells embedded by the encoder as it is now."""
        parts = [checkpoint(self.encoder, chunk, use_reentrant=False) if self.recompute else self.encoder(chunk) for chunk in batch.chunks]
        b, i = torch.cat(batch.places).unbind(1)
        embeddings = batch.seen.cell_embeddings
        return replace(batch.seen, cell_embeddings=embeddings.index_put((b, i), torch.cat(parts).to(embeddings.dtype)))

    def forward(self, batch: JointBatch) -> Sums:
        """Return the sums of `SE2Objectives`."""
        return self.objectives(batch.masked, seen=self.live(batch))


def joint_stage(
    config: JointStageConfig,
    se2_config: SE2StageConfig,
    encoder: CellEncoder,
    objectives: SE2Objectives,
    tokens: View,
    embedded: View,
    *,
    make_view: Callable[[int, int], View],
    cls_token: int,
    seed: int,
    records: Sequence[int] | None = None,
) -> Stage:
    """Encoder and transformer together, on the sub-slices of a corpus.

    Parameters
    ----------
    tokens, embedded : View
        Gene tokens; embeddings and virtual cells of the encoder as it is at the beginning.
    make_view : (border, step) -> View
        Embeds the corpus with the encoder as it is at the border, or finds what was made then; called every `refresh_every` steps, and at the step
        from which a run goes on.
    records : sequence of int, optional
        Records of `embedded` to train on; default: all.
    """
    of_key = {place.key: number for number, place in enumerate(tokens.places)}
    on = partial(se2_stage, se2_config, objectives.transformer, seed=seed, records=records, model=objectives)
    frozen = newest = on(embedded)

    def micro_batch(which: Sequence[tuple[int, int]]) -> JointBatch:
        masked = frozen.micro_batch(which)
        seen = newest.micro_batch(which).seen
        keys = [frozen.key(unit) for _, unit in which]
        cells = [(tokens.read(of_key[key]), embedded.read(number_of[key]), key) for key in keys]
        return JointBatch(masked, seen, *_chunks(cells, seen, with_levels=encoder.reads_levels, cls_token=cls_token, budget=config.tokens_per_chunk))

    number_of = {place.key: number for number, place in enumerate(embedded.places)}
    model = JointObjectives(encoder, objectives, recompute=config.tokens_per_chunk is not None)
    sizes = encoder_config_of(encoder)

    def work(batch: JointBatch) -> Work:
        lengths = np.concatenate([(chunk != PAD_TOKEN).sum(1).cpu().numpy() for chunk in batch.chunks])
        return frozen.work(batch.masked) + Work(0, 0, int(lengths.sum()), encoder_flops(sizes, lengths).total)

    def embed(model: Any, batch: JointBatch) -> Tensor:
        return torch.cat([model.encoder(chunk) for chunk in batch.chunks])

    stage = Stage(
        JOINT, config, model, frozen.n_units, frozen.units_each, micro_batch, frozen.weights,
        key=frozen.key, work=work, embed=embed, lr_shares={"encoder": config.encoder_lr_share},
        blocks="objectives.transformer.layers",  # those of the encoder run once a chunk, of which processes have more or fewer
    )  # fmt: skip
    an_epoch = max(1, frozen.n_units // (frozen.units_each * config.n_micro_batches))

    def refresh(border: int, step: int) -> None:
        nonlocal newest
        newest = on(embedded if border == 0 else make_view(border, step))

    return replace(stage, refresh_every=config.refresh_every or an_epoch, refresh=refresh)


def _chunks(
    cells: Sequence[tuple[dict[str, np.ndarray], dict[str, np.ndarray], str]],
    seen: SubSliceBatch,
    *,
    with_levels: bool,
    cls_token: int,
    budget: int | None,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Gene tokens and places of the visible cells that sub-slices own, short with short; of all cells where none is visible."""
    parts, places = [], []
    for b, (of_tokens, embedded, key) in enumerate(cells):
        n = len(of_tokens[N_TOKENS])
        if not np.array_equal(of_tokens[ROWS], embedded[ROWS][:n]):
            raise DataError(f"record {key}: its gene tokens and its embeddings are of other cells; expected the same. Build the corpus again.")
        parts.append(GeneTokens.of_record(of_tokens, with_levels=with_levels))
        places.append(np.stack([np.full(n, b), np.arange(n)], axis=1))
    every = GeneTokens.joined(parts)
    place = np.concatenate(places)
    is_seen = ~seen.is_masked.numpy()[place[:, 0], place[:, 1]]
    shown = np.flatnonzero(is_seen) if is_seen.any() else np.arange(len(place))  # masked as they are, it changes nothing
    lengths = every.lengths[shown] + 1
    chunks = batches_by_length(lengths, int(lengths.sum() * lengths.max()) if budget is None else budget)
    chosen = [shown[chunk] for chunk in chunks]
    return (
        tuple(torch.from_numpy(every.padded(some, cls_token=cls_token)) for some in chosen),
        tuple(torch.from_numpy(place[some]) for some in chosen),
    )
