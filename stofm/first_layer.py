"""The first layer of BERT for inference, without the products that make its queries, keys and values.

A token starts as the sum of three vectors, of its gene, its place and its level, and is normalised. So what a matrix makes of it is a sum of
three vectors too, that were multiplied with it beforehand, less its mean and over its spread: a weighted sum of five rows of one table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stofm.fields import PAD_TOKEN
from stofm.gene_tokens import GeneTokens

if TYPE_CHECKING:
    from transformers import BertModel

BLOCK = 2**20  # tokens looked at together
LEAST_TOKENS = 4  # for each row of the table, or the products themselves are less work


class FirstLayer:
    """Start of tokens and first layer of `bert`, whose layer may be packed (`stofm.packed`), for cells of some genes.

    Parameters
    ----------
    bert : BertModel
        In evaluation mode; later changes of weights are not seen.
    genes : (G,) int64
        Ids that tokens may have, each once.
    n_places : int
        Tokens of the longest cell.
    """

    def __init__(self, bert: BertModel, genes: Tensor, n_places: int) -> None:
        start, self.layer = bert.embeddings, bert.encoder.layer[0]
        self.norm, read = start.LayerNorm, self.layer.attention.self
        self.row_of_gene = torch.zeros(len(start.word_embeddings.weight), dtype=torch.int64)
        self.row_of_gene[genes] = torch.arange(len(genes))
        self.of_places, self.of_levels = len(genes), len(genes) + n_places  # first rows
        weight, bias = (torch.cat([getattr(linear, what) for linear in (read.query, read.key, read.value)]) for what in ("weight", "bias"))
        parts = (start.word_embeddings.weight[genes], start.position_embeddings.weight[:n_places], start.token_type_embeddings.weight)
        self.start = torch.cat(parts)  # (rows, W)
        scaled = weight * self.norm.weight  # (3 W, W)
        self.table = torch.cat([self.start @ scaled.T, -scaled.sum(1)[None], (weight @ self.norm.bias + bias)[None]])  # (rows + 2, 3 W)

    def __call__(self, genes: Tensor, levels: Tensor | None, mask: Tensor | None) -> Tensor:
        """Map (B, T) genes, their levels and what BERT's layers are given as a mask to (B, T, W) states after the first layer."""
        B, T = genes.shape
        rows = torch.empty(B, T, 5, dtype=torch.int64)
        rows[..., 0] = self.row_of_gene[genes]
        rows[..., 1] = self.of_places + torch.arange(T)
        rows[..., 2] = self.of_levels if levels is None else self.of_levels + levels
        rows[..., 3], rows[..., 4] = len(self.table) - 2, len(self.table) - 1
        rows = rows.flatten(0, 1)
        start = F.embedding_bag(rows[:, :3].contiguous(), self.start, mode="sum")  # (B T, W)
        states, mean, per_spread = torch.native_layer_norm(start, start.shape[1:], self.norm.weight, self.norm.bias, self.norm.eps)
        weights = torch.cat([per_spread.expand(-1, 3), mean * per_spread, torch.ones_like(mean)], dim=1)
        made = F.embedding_bag(rows, self.table, per_sample_weights=weights, mode="sum")  # (B T, 3 W)
        query, key, value = made.view(B, T, 3, -1, self.layer.attention.self.attention_head_size).permute(2, 0, 3, 1, 4)  # each (B, H, T, size)
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
        found: Tensor = self.layer.feed_forward_chunk(self.layer.attention.output(read, states.view(B, T, -1)))
        return found


def first_layer(bert: Any, tokens: GeneTokens, *, cls_token: int) -> FirstLayer | None:
    """Make the first layer for these cells; None where there are too few of them, or it is BERT's only layer or an adapted one (peft)."""
    read = bert.encoder.layer[0].attention.self
    if len(bert.encoder.layer) == 1 or not all(isinstance(linear, nn.Linear) for linear in (read.query, read.key, read.value)):
        return None
    is_seen = np.zeros(bert.config.vocab_size, bool)
    is_seen[[PAD_TOKEN, cls_token]] = True
    for begin in range(0, len(tokens.tokens), BLOCK):
        is_seen[tokens.tokens[begin : begin + BLOCK]] = True
    n_places = 1 + int(tokens.lengths.max(initial=0))
    if len(tokens.tokens) < LEAST_TOKENS * (is_seen.sum() + n_places):
        return None
    return FirstLayer(bert, torch.from_numpy(np.flatnonzero(is_seen)), n_places)
