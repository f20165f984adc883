"""The SE(2) transformer: a sub-slice's cells and virtual cells in, one representation per cell out.

Coordinates enter through distances alone (with ``geometry: directional`` also through relative directions), so turning,
shifting or mirroring a sub-slice changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from stofm.attention import PairStateAttention
from stofm.batch import SubSliceBatch
from stofm.config import FrozenModel
from stofm.errors import DataError
from stofm.fields import EMBEDDING_DIM
from stofm.geometry import Pairs, find_pairs, with_cls_pairs
from stofm.pair_bias import PairBias
from stofm.pair_state import Form, PairState, pair_state
from stofm.published_pair_bias import PublishedPairBias

PUBLISHED_MASK = -100.0  # in every dimension of a hidden embedding

if TYPE_CHECKING:
    from stofm.directional import Directions


class SE2TransformerConfig(FrozenModel):
    """Sizes of the SE(2) transformer; its width is that of the cell embeddings, 256."""

    scheme: Literal["stofm", "published"] = Field("stofm", description="`published` computes what published checkpoints were trained to.")
    n_layers: int = Field(4, ge=1)
    n_heads: int = Field(8, ge=1)
    ffn_dim: int = Field(256, ge=1)
    n_radial: int = Field(32, ge=2, description="Radial functions of the pair bias.")
    length_um: float = Field(20.0, gt=0, description="Micrometres; the pair bias resolves distances finest below it.")
    n_neighbors: int = Field(16, ge=1, description="Nearest cells whose distance a cell sees; with more than a sub-slice has, all pairs.")
    dropout: float = Field(0.1, ge=0, lt=1)
    has_cls: bool = Field(False, description="One token more that all see and that sees all; its representation is that of the sub-slice.")
    geometry: Literal["distances", "directional"] = Field("distances", description="directional: relative directions of neighbours too.")

    @model_validator(mode="after")
    def _heads_divide(self) -> SE2TransformerConfig:
        if EMBEDDING_DIM % self.n_heads:
            raise ValueError(f"n_heads {self.n_heads} does not divide {EMBEDDING_DIM}; expected a divisor.")
        if self.scheme == "published" and self.geometry != "distances":
            raise ValueError(f"scheme: published with geometry: {self.geometry}; expected `distances`, all that published checkpoints know.")
        if self.scheme == "published" and self.has_cls:
            raise ValueError("scheme: published with has_cls; expected it without, for published sub-slices have a `<cls>` as they are.")
        return self


@dataclass(frozen=True, eq=False)
class SubSliceRepr:
    """What the SE(2) transformer makes of a batch.

    Attributes
    ----------
    cell_repr : (B, N, 256) float
        Representation of every cell and virtual cell; zero in padding.
    pair_repr : (P, H) float or None
        Pair state after the last layer of the pairs asked for.
    directions : Directions, with ``geometry: directional``
    sub_slice_repr : (B, 256) float, with ``has_cls``
    """

    cell_repr: Tensor
    pair_repr: Tensor | None
    directions: Directions | None = None
    sub_slice_repr: Tensor | None = None


class SE2Layer(nn.Module):
    """Attention and feed-forward, each added and then normalised."""

    def __init__(self, config: SE2TransformerConfig) -> None:
        super().__init__()
        self.self_attn = PairStateAttention(EMBEDDING_DIM, config.n_heads, config.dropout)
        self.self_attn_layer_norm = nn.LayerNorm(EMBEDDING_DIM)
        self.fc1, self.fc2 = nn.Linear(EMBEDDING_DIM, config.ffn_dim), nn.Linear(config.ffn_dim, EMBEDDING_DIM)
        self.final_layer_norm = nn.LayerNorm(EMBEDDING_DIM)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, cells: Tensor, state: PairState) -> Tensor:
        """Return the cells (T, D) after this layer, which adds to the pair state."""
        cells = self.self_attn_layer_norm(cells + self.dropout(self.self_attn(cells, state)))
        update = self.fc2(nn.functional.gelu(self.fc1(cells)))
        return self.final_layer_norm(cells + self.dropout(update))


class SE2Transformer(nn.Module):
    """Cells of a sub-slice, virtual cells of its slice, and the distances between them, read together.

    Notes
    -----
    Under `scheme: published` the same layers compute the published function: its pair bias, its four types of token, unit vectors as they are,
    a constant where an embedding is hidden. Batches hold its `<cls>`, and pairs are handed in, for its distances are no micrometres.
    """

    form: Form | None = None  # of the pair state; None: what suits device and gradients

    def __init__(self, config: SE2TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding_layer = nn.Linear(EMBEDDING_DIM, EMBEDDING_DIM)
        is_published = config.scheme == "published"
        if not is_published:
            self.mask_embedding = nn.Parameter(torch.randn(EMBEDDING_DIM) * 0.02)  # stands for a hidden cell embedding
        self.type_embedding = nn.Embedding(4 if is_published else 2, EMBEDDING_DIM)  # cell, virtual; cell, <cls>, virtual, padding
        nn.init.normal_(self.type_embedding.weight, std=0.02)
        self.pair_bias: PairBias | PublishedPairBias = (
            PublishedPairBias(config.n_heads, config.n_radial)
            if is_published
            else PairBias(config.n_heads, config.n_radial, config.length_um, has_cls=config.has_cls)
        )
        if config.has_cls:
            self.cls_embedding = nn.Parameter(torch.randn(EMBEDDING_DIM) * 0.02)
        self.layers = nn.ModuleList(SE2Layer(config) for _ in range(config.n_layers))
        if config.geometry == "directional":
            from stofm.directional import DirectionalBlock

            self.directional = DirectionalBlock(n_radial=config.n_radial, length_um=config.length_um, n_neighbors=config.n_neighbors)

    def forward(self, batch: SubSliceBatch, pairs: Pairs | None = None, *, wanted: Tensor | None = None) -> SubSliceRepr:
        """Read a batch.

        Parameters
        ----------
        batch : SubSliceBatch
        pairs : Pairs, optional
            Spares finding them again where the caller has them; required under `scheme: published`.
        wanted : (P, 3) int64, optional
            Sub-slice and two cells of every pair whose representation is asked for.
        """
        is_fused = self.form == "fused"
        if is_fused and (pairs is not None or not isinstance(self.pair_bias, PairBias)):
            raise RuntimeError("the fused pair state makes pairs of coordinates inside attention; hand it none, and no published distances")
        if pairs is None and not (is_fused and self.config.geometry == "distances"):
            pairs = self.find_pairs(batch)
        cells, directions = self._read_cells(batch), None  # (B, N, D)
        if self.config.geometry == "directional":
            update, directions = self.directional(cells, batch, pairs)
            cells = cells + update
        if self.config.has_cls:
            batch = batch.with_cls()
            pairs = None if pairs is None else with_cls_pairs(pairs, batch)
            cells = torch.cat([cells, self.cls_embedding.to(cells.dtype).expand(len(cells), 1, -1)], dim=1)
        is_there = ~batch.is_padding
        cells = cells[is_there]  # (T, D), without padding
        with torch.autocast(cells.device.type, enabled=False):  # bias, and so the pair state, in float32 whatever the layers are in
            state = self._pair_state(batch, pairs)
        for layer in self.layers:
            cells = layer(cells, state)
        cell_repr = cells.new_zeros(*is_there.shape, EMBEDDING_DIM).masked_scatter(is_there[..., None], cells)
        sub_slice_repr = None
        if self.config.has_cls:
            cell_repr, sub_slice_repr = cell_repr[:, :-1], cell_repr[:, -1]
        return SubSliceRepr(cell_repr, None if wanted is None else state.of_pairs(wanted), directions, sub_slice_repr)

    def _pair_state(self, batch: SubSliceBatch, pairs: Pairs | None) -> PairState:
        if self.form == "fused":
            from stofm.fused import Fused

            return Fused(self.pair_bias, batch, self.config.n_neighbors, self.config.n_layers)  # type: ignore[arg-type]
        return pair_state(self.pair_bias(batch, pairs), self.form)

    def find_pairs(self, batch: SubSliceBatch) -> Pairs:
        """Return the pairs of a batch, as its distances in micrometres give them; `DataError` under `scheme: published`."""
        if self.config.scheme == "published":
            raise DataError("SE(2) transformer: found no pairs; expected those of the published distances. Make them with `published_pairs`.")
        return find_pairs(batch, n_neighbors=self.config.n_neighbors)

    def _read_cells(self, batch: SubSliceBatch) -> Tensor:
        is_masked = batch.is_masked[..., None]
        if self.config.scheme == "published":
            types = 2 * batch.is_virtual  # padding goes no further, so its type is of no account
            types = types if batch.is_cls is None else types + batch.is_cls
            return self.embedding_layer(batch.cell_embeddings.masked_fill(is_masked, PUBLISHED_MASK)) + self.type_embedding(types)
        cells = self.embedding_layer(batch.cell_embeddings * EMBEDDING_DIM**0.5)  # unit vectors, scaled to unit variance
        cells = torch.where(is_masked, self.mask_embedding.to(cells.dtype), cells)
        return cells + self.type_embedding(batch.is_virtual.long())
