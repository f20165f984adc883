"""Where an encoder that is trained from scratch starts: reading what genes vary together, each by its rank.

A randomly started encoder spends its first epochs finding out which genes go together, and until then gives all cells
nearly the same embedding, which starves every objective. So it starts as what BERT's own parts can compute of a principal component
analysis of ranks: cheap to prepare, and training improves on it instead of looking for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor, nn

from corpus.slice import FloatArray, IntArray
from corpus.store import Corpus
from pretrain.data import generator
from stofm.cell_encoder import CellEncoder
from stofm.fields import N_LEADING_SPECIALS
from stofm.gene_tokens import GeneTokens

MOST_SLICES, CELLS_PER_SLICE, AXES_PER_SLICE = 200, 1500, 30
CELLS_TO_CENTRE = 32  # of every slice
FIRST_RANKS = 10.0  # ranks up to about here count alike, later ones as the root of 1 / rank
OF_ITSELF = 5.0  # what `<cls>` counts beside its genes, so that a cell of few genes stays nearer to the middle
CONSTANT, RANK = 0, 1  # the two dimensions that no gene uses
LINEAR = 3.0  # the constant is this much longer than any gene or cell beside it, so that layer norms hardly bend what they scale


@torch.no_grad()
def start_from_coexpression(encoder: CellEncoder, corpus: Corpus, *, seed: int) -> None:
    """Set an untrained encoder to give cells their scores on the principal axes of a corpus's ranks, centred, at unit length.

    - Gene embeddings are these axes in a random basis. Of two further dimensions one is the same for all tokens and so long that layer
      norms scale all tokens alike; the other holds the rank.
    - The first layer attends by rank alone and hands on the mean it finds; whatever else the layers add starts at zero.
    - The head turns the result, centred over the corpus, into the embedding.
    """
    sample = _sample(corpus, seed)
    bert, width = encoder.bert, encoder.bert.config.hidden_size
    n_genes = len(corpus.vocab.gene_ids)
    axes = rank_axes(sample, n_genes, n_axes=min(width - 2, n_genes - 1))  # (G, n_axes)
    if not axes.shape[1]:
        return
    basis = np.linalg.qr(generator(seed, 0).standard_normal((width - 2, axes.shape[1])))[0]  # (width - 2, n_axes)
    genes = torch.from_numpy(axes @ basis.T).float()
    genes *= bert.config.initializer_range / genes.square().mean().sqrt()
    constant = LINEAR * float(genes.norm(dim=1).max())
    words, positions, kinds = (
        table.weight.zero_()
        for table in (bert.embeddings.word_embeddings, bert.embeddings.position_embeddings, bert.embeddings.token_type_embeddings)
    )
    words[N_LEADING_SPECIALS : N_LEADING_SPECIALS + n_genes, 2:] = genes
    kinds[:, CONSTANT] = constant
    log_weight = -0.5 * torch.log(torch.arange(len(positions)) - 1 + FIRST_RANKS)  # `<cls>` is in front of the first rank
    log_weight[0] = math.log(OF_ITSELF)
    positions[:, RANK] = 0.1 * constant * log_weight
    for layer in bert.encoder.layer:
        layer.attention.output.dense.weight.zero_()
        layer.output.dense.weight.zero_()
    attention: Any = bert.encoder.layer[0].attention
    _attend_by_rank(attention, scale=10 / width**0.5)  # undoes the factor above and that of the layer norm

    encoder.eval()
    cells = [tokens.padded(np.arange(min(CELLS_TO_CENTRE, len(tokens.lengths))), cls_token=corpus.vocab.cls_token) for tokens in sample]
    _spread(attention.output.dense, encoder, cells, to=width**0.5 / LINEAR)
    nn.init.orthogonal_(encoder.proj.weight)
    _spread(encoder.proj, encoder, cells, to=1.0)
    encoder.train()


def _attend_by_rank(attention: Any, *, scale: float) -> None:
    """Set an attention layer, transformers' BertAttention, to weigh tokens by their rank dimension and to hand on all dimensions that genes use."""
    read = attention.self
    read.query.weight.zero_()
    read.query.bias.zero_()
    first = torch.arange(read.num_attention_heads) * read.attention_head_size  # one dimension of every head
    read.query.bias[first] = read.attention_head_size**0.5
    read.key.weight[first] = 0
    read.key.weight[first, RANK] = scale
    nn.init.eye_(read.value.weight)
    nn.init.eye_(attention.output.dense.weight)
    attention.output.dense.weight[[CONSTANT, RANK]] = 0


def _spread(linear: nn.Linear, encoder: CellEncoder, cells: Sequence[IntArray], *, to: float) -> None:
    """Shift and scale a layer of an encoder, so that what it gives at `<cls>` of cells, (B, T) tokens each, is centred and about `to` long."""
    found: list[Tensor] = []
    hook = linear.register_forward_hook(lambda _, __, output: found.append(output[:, 0] if output.ndim == 3 else output))
    for tokens in cells:
        encoder(torch.from_numpy(tokens))
    hook.remove()
    outputs = torch.cat(found)
    mean = outputs.mean(dim=0)
    size = (outputs - mean).square().sum(dim=1).mean().sqrt().clamp(min=1e-6)
    linear.weight *= to / size
    linear.bias.copy_((linear.bias - mean) * (to / size))


def rank_axes(slices: list[GeneTokens], n_genes: int, *, n_axes: int) -> FloatArray:
    """Return the leading principal axes of ranks within slices, (G, n_axes) float64, orthonormal, the first one first.

    A cell's genes have weights that fall with their rank, of length 1 together, so that a cell counts the same however many genes it
    expresses. Every slice gives its own leading axes, each as long as its spread is beside that of the slice's first; so slices weigh
    the same however many cells, genes or how much noise they have (as tables do in multiple factor analysis, Escofier and Pages 1994).
    """
    of_slices = [axes for tokens in slices if len(axes := _axes_of_slice(tokens, n_genes))]
    if not of_slices:
        return np.zeros((n_genes, 0))
    stacked = np.vstack(of_slices)
    n_axes = min(n_axes, len(stacked))
    spreads, rotation = np.linalg.eigh(stacked @ stacked.T)  # ascending
    leading = rotation[:, ::-1][:, :n_axes][:, spreads[::-1][:n_axes] > 1e-9 * spreads[-1]]
    axes = stacked.T @ leading
    return axes / np.linalg.norm(axes, axis=0)


def _axes_of_slice(tokens: GeneTokens, n_genes: int) -> FloatArray:
    """Leading principal axes of one slice, (at most 30, G), each times its spread over that of the first; none if cells are alike."""
    n_cells, lengths = len(tokens.lengths), tokens.lengths
    rank = np.arange(len(tokens.tokens)) - np.repeat(tokens.offsets[:-1], lengths)
    weight = 1 - rank / np.repeat(lengths + 1, lengths)
    length = np.sqrt(np.bincount(np.repeat(np.arange(n_cells), lengths), weight**2, n_cells))
    weight /= np.repeat(length, lengths)
    matrix = csr_matrix((weight, tokens.tokens.astype(np.int64) - N_LEADING_SPECIALS, tokens.offsets), shape=(n_cells, n_genes))
    mean = np.asarray(matrix.mean(axis=0)).ravel()
    n_axes = min(AXES_PER_SLICE, min(matrix.shape) - 1)
    if n_axes < 1 or (weight**2).sum() - n_cells * (mean @ mean) < 1e-9:
        return np.zeros((0, n_genes))
    centred = LinearOperator(
        matrix.shape,
        matvec=lambda x: matrix @ x.ravel() - mean @ x.ravel(),
        rmatvec=lambda y: matrix.T @ y.ravel() - mean * y.sum(),
        dtype=np.float64,
    )
    _, spreads, axes = svds(centred, k=n_axes, v0=np.random.default_rng(0).standard_normal(min(matrix.shape)))
    return (spreads / spreads.max())[:, None] * axes


def _sample(corpus: Corpus, seed: int) -> list[GeneTokens]:
    """Gene tokens of some cells of every slice that has any; of some slices where there are many."""
    chosen = np.sort(generator(seed, 1).permutation(len(corpus.slice_ids))[:MOST_SLICES])
    scales = ((number, corpus.gene_scale(corpus.slice_ids[number]).tokens) for number in chosen)
    return [tokens.take(_some(len(tokens.lengths), generator(seed, int(number)))) for number, tokens in scales if len(tokens.lengths)]


def _some(n: int, rng: np.random.Generator) -> IntArray:
    return rng.permutation(n)[:CELLS_PER_SLICE]
