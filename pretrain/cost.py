"""What training costs: floating point operations and memory, from sizes alone; before a run for its plan, in it for its share of the peak.

Operations are those of the matrix products, a multiplication and an addition counting two, as torch's `FlopCounterMode` counts them; a test
compares. What is computed again (activation checkpointing) is no work done for the model and is counted apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from stofm.cell_encoder import CellEncoderConfig
from stofm.fields import EMBEDDING_DIM
from stofm.se2_transformer import SE2TransformerConfig

if TYPE_CHECKING:
    from torch import nn

    from stofm.cell_encoder import CellEncoder

D = EMBEDDING_DIM
FLOAT = 4  # bytes
ADAMW_BYTES = 16  # of a trained parameter: itself, its gradient, two moments, in float32 whatever the precision of the arithmetic


@dataclass(frozen=True)
class Flops:
    """Floating point operations of a forward pass and of its gradient."""

    forward: float
    backward: float

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: float) -> Flops:
        return Flops(self.forward * times, self.backward * times)

    @property
    def total(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


def _product(n: float, *, of_input: bool = True) -> Flops:
    """A product of `n` multiplications; its gradients are two of that size, or one where the input needs none."""
    return Flops(2 * n, (4 if of_input else 2) * n)


def encoder_config_of(encoder: CellEncoder) -> CellEncoderConfig:
    """Return the sizes of an encoder, wherever it comes from."""
    bert = encoder.bert.config
    return CellEncoderConfig(
        n_layers=bert.num_hidden_layers, width=bert.hidden_size, n_heads=bert.num_attention_heads,
        ffn_dim=bert.intermediate_size, dropout=bert.hidden_dropout_prob,
    )  # fmt: skip


def encoder_flops(config: CellEncoderConfig, lengths: ArrayLike, *, at_cls: bool = True) -> Flops:
    """Embed cells of these lengths, (n,), gene tokens and `<cls>`; padding counts, so hand over padded lengths for what is computed.

    A token costs ``L (8 d^2 + 4 d f)`` forward, and in a cell of T tokens ``4 L d T`` more for attention. `at_cls`: in the last layer, which
    is read at `<cls>` alone, it costs ``4 h d`` of h heads.
    """
    length, n_whole = np.asarray(lengths, np.float64), config.n_layers - at_cls
    tokens, pairs = float(length.sum()), float((length**2).sum())
    whole = n_whole * (tokens * (4 * config.width**2 + 2 * config.width * config.ffn_dim) + 2 * pairs * config.width)
    of_cls = tokens * 2 * config.n_heads * config.width + length.size * (4 * config.width**2 + 2 * config.width * config.ffn_dim)
    return _product(whole + at_cls * of_cls) + _product(length.size * config.width * D)


def gene_head_flops(config: CellEncoderConfig, *, n_hidden: float, n_ids: int) -> Flops:
    """Predict `n_hidden` gene tokens out of `n_ids` (masked gene modeling)."""
    return _product(n_hidden * config.width * (config.width + n_ids))


def contrast_flops(n_cells: int) -> Flops:
    """Compare two passes of `n_cells` cells with one another (contrastive loss)."""
    return _product(n_cells**2 * D)


def transformer_flops(
    config: SE2TransformerConfig, *, n_cells: int, n_virtual: int, n_pairs: float | None = None, frozen_encoder: bool = True
) -> Flops:
    """Read a sub-slice.

    Parameters
    ----------
    n_cells, n_virtual : int
    n_pairs : float, optional
        Pairs with a distance, each once; by default estimated by `expected_pairs`.
    frozen_encoder : bool
        Whether no gradient goes on into the cell embeddings.
    """
    N = n_cells + n_virtual
    pairs = expected_pairs(config, n_cells=n_cells, n_virtual=n_virtual) if n_pairs is None else n_pairs
    first = _product(N * D**2, of_input=not frozen_encoder)
    layers = _product(config.n_layers * (N * (4 * D**2 + 2 * D * config.ffn_dim) + 2 * N**2 * D))
    bias = _product(pairs * config.n_radial**2, of_input=False) + _product(pairs * config.n_radial * config.n_heads)
    return first + layers + bias


def expected_pairs(config: SE2TransformerConfig, *, n_cells: int, n_virtual: int) -> float:
    """Pairs of a sub-slice: three in five neighbour relations are new ones (the rest are returned), virtual cells are paired with all."""
    near = 0.62 * n_cells * min(config.n_neighbors, max(n_cells - 1, 0))
    return near + n_virtual * n_cells + n_virtual * (n_virtual - 1) / 2


def se2_head_flops(config: SE2TransformerConfig, *, n_cells: int, n_predicted: float, n_pairs: float, n_contexts: int) -> Flops:
    """Ask a sub-slice: hidden embeddings, distances of moved cells, and the surroundings of every cell."""
    asked = n_predicted * 2 * D**2 + n_pairs * (config.n_heads**2 + config.n_heads)
    return _product(asked + n_cells * n_contexts * D**2)


def n_parameters(*modules: nn.Module) -> int:
    """Parameters of modules, also of such as were made on torch's `meta` device."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def encoder_activation_bytes(config: CellEncoderConfig, n_tokens: float, *, at_cls: bool = True) -> float:
    """What the gradient of the encoder keeps of `n_tokens` tokens in float32, attention by a fused kernel.

    Of each layer eight arrays of its width, two of its feed-forward width, and the sums of attention and norms; `at_cls`: of the last
    layer, which is read at `<cls>` alone, one of its width, and scores.
    """
    of_layer: float = 8 * config.width + 2 * config.ffn_dim + config.n_heads + 5
    if config.dropout:
        of_layer += 2 * config.width / FLOAT + 2 * config.width  # two masks of bytes, and what they were laid on
    return FLOAT * n_tokens * ((config.n_layers - at_cls) * of_layer + config.width + at_cls * (config.width + 2 * config.n_heads))


def transformer_activation_bytes(config: SE2TransformerConfig, *, n_cells: int, n_virtual: int, n_contexts: int = 0) -> float:
    """What the gradient of the transformer keeps of a sub-slice in float32: attention weights of every layer, the pair state and its gradient."""
    N = n_cells + n_virtual
    of_entry = config.n_layers * (FLOAT + (1 if config.dropout else 0)) + 2 * FLOAT
    of_token = FLOAT * (config.n_layers * (10 * D + 2 * config.ffn_dim + 4) + D * (n_contexts + 2))
    pairs = expected_pairs(config, n_cells=n_cells, n_virtual=n_virtual)
    return config.n_heads * N**2 * of_entry + N * of_token + FLOAT * pairs * (3 * config.n_radial + 4)


def training_bytes(*, n_trained: int, n_frozen: int, activation_bytes: float, n_shards: int = 1, n_gathered: int = 0) -> float:
    """Memory of a training step on one device: weights, gradients, AdamW, activations.

    Of a model in `n_shards` parts a device holds one, and `n_gathered` parameters whole with their gradients while it computes.
    """
    return ADAMW_BYTES * n_trained / n_shards + 2 * FLOAT * n_gathered + FLOAT * n_frozen + activation_bytes
