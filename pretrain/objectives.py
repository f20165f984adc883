"""The objectives, each as a sum over its targets; dividing by global counts is left to the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.context import context_of_cells, own_of_cells
from stofm.batch import SubSliceBatch
from stofm.heads import CellHead, ContextHead, PairHead

if TYPE_CHECKING:
    from pretrain.config import SE2StageConfig
    from stofm.cell_encoder import CellEncoder
    from stofm.geometry import Pairs
    from stofm.se2_transformer import SE2Transformer

Sums = dict[str, Tensor]  # objective -> 0-d sum over its targets


@dataclass(frozen=True, eq=False)
class _OnDevice:
    """A frozen dataclass of tensors and batches that moves as one."""

    def to(self, device: torch.device) -> Any:
        """Return the same on `device`."""
        return replace(self, **{field.name: getattr(self, field.name).to(device) for field in fields(self)})


@dataclass(frozen=True, eq=False)
class CellPairBatch(_OnDevice):
    """Two differently masked passes of the same B cells.

    Attributes
    ----------
    tokens : (2B, T) int64
        First pass of all cells, then the second.
    is_hidden : (2B, T) bool
    hidden_tokens : (number hidden,) int64
        The true tokens, in the order of ``is_hidden``.
    """

    tokens: Tensor
    is_hidden: Tensor
    hidden_tokens: Tensor

    def counts(self) -> dict[str, int]:
        """Targets of each objective."""
        return {"mgm": len(self.hidden_tokens), "contrastive": len(self.tokens) // 2}


class EncoderObjectives(nn.Module):
    """Masked gene modeling and the contrastive loss over two passes of a cell.

    Notes
    -----
    Source: domain adaptation of SToFM. Its contrastive loss is not specified; ours is SimCSE's (Gao et al. 2021): the
    other pass of the same cell is the positive, the other cells of the micro-batch are the negatives.
    """

    def __init__(self, encoder: CellEncoder, *, temperature: float) -> None:
        super().__init__()
        self.encoder, self.temperature = encoder, temperature
        width = encoder.bert.config.hidden_size
        self.gene_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.gene_bias = nn.Parameter(torch.zeros(encoder.n_tokens))

    def forward(self, batch: CellPairBatch) -> Sums:
        """Return the sums of ``mgm`` (cross-entropy) and ``contrastive``."""
        hidden = self.encoder.hidden(batch.tokens)  # (2B, T, width)
        genes = self.encoder.bert.embeddings.word_embeddings.weight  # (ids, width), shared with the input
        logits = F.linear(self.gene_head(hidden[batch.is_hidden]), genes, self.gene_bias)
        first, second = self.encoder.embed(hidden[:, 0]).float().chunk(2)  # each (B, 256)
        alike = first @ second.mT / self.temperature  # (B, B)
        own = torch.arange(len(alike), device=alike.device)
        contrastive = (F.cross_entropy(alike, own, reduction="sum") + F.cross_entropy(alike.mT, own, reduction="sum")) / 2
        return {"mgm": F.cross_entropy(logits.float(), batch.hidden_tokens, reduction="sum"), "contrastive": contrastive}


@dataclass(frozen=True, eq=False)
class MaskedBatch(_OnDevice):
    """Masked sub-slices and the truth.

    Attributes
    ----------
    seen : SubSliceBatch
    predicted : (M, 2) int64
        Sub-slice and cell of every embedding to predict.
    embeddings : (M, 256) float32
        The true embeddings.
    pairs : (P, 3) int64
        Sub-slice, moved cell and neighbour of every distance to recover.
    pair_distances : (P,) float32
        The true distances, in units of the local spacing.
    moved : (Q, 2) int64
        Sub-slice and cell of every displacement to predict.
    displacements : (Q, 2) float32
        From where the cell is seen to its true place, in the same units.
    """

    seen: SubSliceBatch
    predicted: Tensor
    embeddings: Tensor
    pairs: Tensor
    pair_distances: Tensor
    moved: Tensor
    displacements: Tensor

    def counts(self) -> dict[str, int]:
        """Targets of each objective."""
        counts = {"mcm": len(self.predicted), "pdr": len(self.pairs), "context": int(self.seen.is_cell.sum())}
        return {**counts, "own": int((self.seen.is_cell & ~self.seen.is_masked).sum()), "displacement": len(self.moved)}


class SE2Objectives(nn.Module):
    """Masked cell modeling (cosine), pairwise distance recovery and, on request, tissue context, a cell's own embedding and displacements.

    The last three are squared errors. `context_um` are the reaches of `context_of_cells`; None leaves that objective out.

    Notes
    -----
    Masked cell modeling and distances are those of SToFM. They ask a cell what it is and how far its neighbours are, but never
    where in the tissue it lies, and what is not asked for fades with training; so every cell is asked for its surroundings too.
    And for what it is itself, where that is seen: a cell's type would fade in its surroundings as its place did in its type.
    Displacements of moved cells: the denoising of coordinates of molecular models (Zaidi et al. 2023), on a share of the cells.
    """

    def __init__(
        self, transformer: SE2Transformer, *, context_um: Sequence[float] | None = None, with_own: bool = False, with_displacements: bool = False
    ) -> None:
        super().__init__()
        self.transformer, self.context_um = transformer, context_um
        config = transformer.config
        self.cell_head, self.pair_head = CellHead(), PairHead(config.n_heads)
        self.context_head = None if context_um is None else ContextHead(1 + len(context_um))
        self.own_head = ContextHead(1) if with_own else None
        self.displacement_head = None
        if with_displacements:
            from stofm.displacement import DisplacementHead  # imports e3nn's tensor products

            self.displacement_head = DisplacementHead(n_radial=config.n_radial, n_neighbors=config.n_neighbors)

    @classmethod
    def of(cls, config: SE2StageConfig, transformer: SE2Transformer) -> SE2Objectives:
        """Return the objectives that a configuration gives a weight."""
        context_um = config.context_um if config.context_weight else None
        return cls(transformer, context_um=context_um, with_own=config.own_weight > 0, with_displacements=config.displacement_weight > 0)

    def forward(self, batch: MaskedBatch, pairs: Pairs | None = None, *, seen: SubSliceBatch | None = None) -> Sums:
        """Return the sums of ``mcm`` (1 - cosine), ``pdr`` and, on request, ``context`` (a mean over a cell's contexts), ``own``
        and ``displacement``.

        `pairs` as in `SE2Transformer.forward`; `seen` is what the model reads instead of ``batch.seen``, of which the targets stay: the same
        cells at the same places, with other embeddings and virtual cells.
        """
        pairs = self.transformer.find_pairs(batch.seen) if pairs is None else pairs
        out = self.transformer(batch.seen, pairs, wanted=batch.pairs) if seen is None else self.transformer(seen, wanted=batch.pairs)
        b, i = batch.predicted.unbind(1)
        cosine = (self.cell_head(out.cell_repr[b, i]).float() * batch.embeddings).sum(-1)
        distances = self.pair_head(out.pair_repr).float()
        sums = {"mcm": (1 - cosine).sum(), "pdr": ((distances - batch.pair_distances) ** 2).sum()}
        if self.context_head is not None and self.context_um is not None:
            found = self.context_head(out.cell_repr[(batch.seen if seen is None else seen).is_cell]).float()
            sums["context"] = ((found - context_of_cells(batch.seen, pairs, self.context_um)) ** 2).sum(-1).mean(1).sum()
        if self.own_head is not None:
            found = self.own_head(out.cell_repr[(batch.seen if seen is None else seen).is_cell & ~batch.seen.is_masked])[:, 0].float()
            sums["own"] = ((found - own_of_cells(batch.seen)) ** 2).sum()
        if self.displacement_head is not None:
            b, i = batch.moved.unbind(1)
            displacements = self.displacement_head(out.cell_repr, out.directions)[b, i]
            sums["displacement"] = ((displacements - batch.displacements) ** 2).sum()
        return sums
