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
from stofm.fields import EMBEDDING_DIM
from stofm.geometry import Pairs, find_pairs
from stofm.pair_bias import PairBias

if TYPE_CHECKING:
    from stofm.directional import Directions


class SE2TransformerConfig(FrozenModel):
    """Sizes of the SE(2) transformer; its width is that of the cell embeddings, 256."""

    n_layers: int = Field(4, ge=1)
    n_heads: int = Field(8, ge=1)
    ffn_dim: int = Field(256, ge=1)
    n_radial: int = Field(32, ge=2, description="Radial functions of the pair bias.")
    length_um: float = Field(20.0, gt=0, description="Micrometres; the pair bias resolves distances finest below it.")
    n_neighbors: int = Field(16, ge=1, description="Nearest cells whose distance a cell sees.")
    dropout: float = Field(0.1, ge=0, lt=1)
    geometry: Literal["distances", "directional"] = Field("distances", description="directional: relative directions of neighbours too.")

    @model_validator(mode="after")
    def _heads_divide(self) -> SE2TransformerConfig:
        if EMBEDDING_DIM % self.n_heads:
            raise ValueError(f"n_heads {self.n_heads} does not divide {EMBEDDING_DIM}; expected a divisor.")
        return self


@dataclass(frozen=True, eq=False)
class SubSliceRepr:
    """What the SE(2) transformer makes of a batch.

    Attributes
    ----------
    cell_repr : (B, N, 256) float
        Representation of every cell and virtual cell; rows of padding hold nothing of use.
    pair_repr : (B, H, N, N) float
        Pair state after the last layer; columns of padding are -inf.
    directions : Directions, with ``geometry: directional``
    """

    cell_repr: Tensor
    pair_repr: Tensor
    directions: Directions | None = None


class SE2Layer(nn.Module):
    """Attention and feed-forward, each added and then normalised."""

    def __init__(self, config: SE2TransformerConfig) -> None:
        super().__init__()
        self.self_attn = PairStateAttention(EMBEDDING_DIM, config.n_heads, config.dropout)
        self.self_attn_layer_norm = nn.LayerNorm(EMBEDDING_DIM)
        self.fc1, self.fc2 = nn.Linear(EMBEDDING_DIM, config.ffn_dim), nn.Linear(config.ffn_dim, EMBEDDING_DIM)
        self.final_layer_norm = nn.LayerNorm(EMBEDDING_DIM)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, cells: Tensor, pair_state: Tensor) -> tuple[Tensor, Tensor]:
        """Return cells (B, N, D) and pair state (B, H, N, N) after this layer."""
        update, pair_state = self.self_attn(cells, pair_state)
        cells = self.self_attn_layer_norm(cells + self.dropout(update))
        update = self.fc2(nn.functional.gelu(self.fc1(cells)))
        return self.final_layer_norm(cells + self.dropout(update)), pair_state


class SE2Transformer(nn.Module):
    """Cells of a sub-slice, virtual cells of its slice, and the distances between them, read together."""

    def __init__(self, config: SE2TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding_layer = nn.Linear(EMBEDDING_DIM, EMBEDDING_DIM)
        self.mask_embedding = nn.Parameter(torch.randn(EMBEDDING_DIM) * 0.02)  # stands for a hidden cell embedding
        self.type_embedding = nn.Embedding(2, EMBEDDING_DIM)  # 0 real, 1 virtual
        nn.init.normal_(self.type_embedding.weight, std=0.02)
        self.pair_bias = PairBias(config.n_heads, config.n_radial, config.length_um)
        self.layers = nn.ModuleList(SE2Layer(config) for _ in range(config.n_layers))
        if config.geometry == "directional":
            from stofm.directional import DirectionalBlock

            self.directional = DirectionalBlock(n_radial=config.n_radial, length_um=config.length_um, n_neighbors=config.n_neighbors)

    def forward(self, batch: SubSliceBatch, pairs: Pairs | None = None) -> SubSliceRepr:
        """Read a batch; `pairs` spares finding them again where the caller has them."""
        pairs = find_pairs(batch, n_neighbors=self.config.n_neighbors) if pairs is None else pairs
        cells = self.embedding_layer(batch.cell_embeddings * EMBEDDING_DIM**0.5)  # unit vectors, scaled to unit variance
        cells = torch.where(batch.is_masked[..., None], self.mask_embedding.to(cells.dtype), cells)
        cells = cells + self.type_embedding(batch.is_virtual.long())  # (B, N, D)
        directions = None
        if self.config.geometry == "directional":
            update, directions = self.directional(cells, batch, pairs)
            cells = cells + update
        pair_state = self.pair_bias(batch, pairs)
        for layer in self.layers:
            cells, pair_state = layer(cells, pair_state)
        return SubSliceRepr(cells, pair_state, directions)
