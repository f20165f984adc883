"""Where an encoder that is trained from scratch starts: reading what genes vary together, each by its level.

A randomly started encoder spends its first epochs finding out which genes go together, and until then gives all cells
nearly the same embedding, which starves every objective. So it starts as what BERT's own parts can compute of a principal component
analysis of square roots of shares: cheap to prepare, and training improves on it instead of looking for it.
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
from pretrain.shared_axes import shared_axes
from stofm.cell_encoder import CellEncoder
from stofm.fields import N_LEADING_SPECIALS
from stofm.gene_tokens import N_LEVELS, GeneTokens, share_of_level

MOST_SLICES, CELLS_PER_SLICE = 60, 1500
AXES_PER_SLICE, CELLS_PER_AXIS = 45, 8  # at most so many axes, found on at least so many cells each
PREFERENCE = 0.02  # power of its spread that an axis is long: it decides on order alone, where axes weigh the same
CELLS_TO_CENTRE = 32  # of every slice
POWER = 0.5  # of its share of a cell's molecules that a gene weighs: after the square root, counts of rare and common genes vary alike
UNKNOWN = -4.6  # logarithm of the share that tokens of no known level, as masked ones, are taken to have
OF_ITSELF = 1.0  # what `<cls>` weighs, as a gene with all molecules would: a cell of few genes stays nearer to the middle
CONSTANT, LEVEL = range(N_OWN := 2)  # the dimensions that no gene uses
LINEAR = 3.0  # the constant is this much longer than any gene or cell beside it, so that layer norms hardly bend what they scale
UNIT = 0.02  # length of a weight's logarithm beside the constant, as small for the same reason


@torch.no_grad()
def start_from_coexpression(encoder: CellEncoder, corpus: Corpus, *, seed: int) -> None:
    """Set an untrained encoder to give cells their scores on axes that the slices of a corpus share (`expression_axes`), centred, at unit length.

    - Gene embeddings are these axes in a random basis. Of two further dimensions one is the same for all tokens and so long that layer
      norms scale all tokens alike; the other holds the logarithm of what a gene of that level weighs.
    - The first layer attends by that weight and hands on the mean it finds. Whatever else the layers add starts at zero, positions too.
    - The head turns the result, centred over the corpus, into the embedding: scores on the axes.
    """
    set_start(encoder, _sample(corpus, seed), n_genes=len(corpus.vocab.gene_ids), cls_token=corpus.vocab.cls_token, seed=seed)


@torch.no_grad()
def set_start(encoder: CellEncoder, sample: list[GeneTokens], *, n_genes: int, cls_token: int, seed: int) -> None:
    """As `start_from_coexpression`, from some cells of every slice."""
    bert, width = encoder.bert, encoder.bert.config.hidden_size
    axes = expression_axes(sample, n_genes, n_axes=min(width - N_OWN, len(encoder.proj.weight), n_genes - 1))  # (G, n_axes)
    if not axes.shape[1]:
        return
    basis = np.linalg.qr(generator(seed, 0).standard_normal((width - N_OWN, axes.shape[1])))[0]  # (width - 2, n_axes)
    genes = torch.from_numpy(axes @ basis.T).float()
    genes *= bert.config.initializer_range / genes.square().mean().sqrt()
    constant = LINEAR * float(genes.norm(dim=1).max())
    words, positions, kinds = (
        table.weight.zero_()
        for table in (bert.embeddings.word_embeddings, bert.embeddings.position_embeddings, bert.embeddings.token_type_embeddings)
    )
    words[N_LEADING_SPECIALS : N_LEADING_SPECIALS + n_genes, N_OWN:] = genes
    kinds[:, CONSTANT] = constant
    kinds[:, LEVEL] = UNIT * constant * torch.from_numpy(np.log(level_weights(np.arange(N_LEVELS)))).float()
    positions[0, LEVEL] = UNIT * constant * math.log(OF_ITSELF) - kinds[0, LEVEL]
    for layer in bert.encoder.layer:
        layer.attention.output.dense.weight.zero_()
        layer.output.dense.weight.zero_()
    attention: Any = bert.encoder.layer[0].attention
    _attend_by_level(attention)

    encoder.eval()
    cells = [tokens.padded(np.arange(min(CELLS_TO_CENTRE, len(tokens.lengths))), cls_token=cls_token) for tokens in sample]
    _spread(attention.output.dense, encoder, cells, to=width**0.5 / LINEAR)
    encoder.proj.weight.zero_()[: axes.shape[1], N_OWN:] = torch.from_numpy(basis.T).float()
    _spread(encoder.proj, encoder, cells, to=1.0)
    encoder.train()


def level_weights(levels: IntArray) -> FloatArray:
    """What genes of these levels weigh."""
    return np.where(levels > 0, share_of_level(levels), np.exp(UNKNOWN)) ** POWER


def _attend_by_level(attention: Any) -> None:
    """Set an attention layer, transformers' BertAttention, to weigh tokens as `level_weights` says, and to hand on all that genes use."""
    read = attention.self
    for linear in (read.query, read.key):
        linear.weight.zero_()
        linear.bias.zero_()
    unit = UNIT * len(read.query.bias) ** 0.5  # after a layer norm of a vector that is hardly more than its constant
    for first in range(0, len(read.query.bias), read.attention_head_size):
        read.query.bias[first] = read.attention_head_size**0.5
        read.key.weight[first, LEVEL] = 1 / unit
    nn.init.eye_(read.value.weight)
    nn.init.eye_(attention.output.dense.weight)
    attention.output.dense.weight[:N_OWN] = 0


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


def expression_axes(slices: list[GeneTokens], n_genes: int, *, n_axes: int) -> FloatArray:
    """Return (G, at most n_axes) on which cells of a slice are as far apart as on its own leading principal axes, all at one length.

    A cell's genes weigh the roots of their shares (`level_weights`), of length 1 together, so that a cell counts the same however many
    genes it expresses. Axes that no slice has together share dimensions (`shared_axes`).
    """
    of_slices = [axes for tokens in slices if len(axes := _axes_of_slice(tokens, n_genes))]
    return shared_axes(of_slices, n_axes) if of_slices else np.zeros((n_genes, 0))


def _axes_of_slice(tokens: GeneTokens, n_genes: int) -> FloatArray:
    """Leading principal axes of one slice, (k, G), nearly of one length, the first one first; none if cells are alike."""
    n_cells, lengths = len(tokens.lengths), tokens.lengths
    weight = level_weights(np.zeros(len(tokens.tokens), np.uint8) if tokens.levels is None else tokens.levels)
    length = np.sqrt(np.bincount(np.repeat(np.arange(n_cells), lengths), weight**2, n_cells))
    weight /= np.repeat(length, lengths)
    genes, columns = np.unique(tokens.tokens.astype(np.int64) - N_LEADING_SPECIALS, return_inverse=True)
    matrix = csr_matrix((weight, columns, tokens.offsets), shape=(n_cells, len(genes)))
    mean = np.asarray(matrix.mean(axis=0)).ravel()
    n_axes = min(AXES_PER_SLICE, max(1, n_cells // CELLS_PER_AXIS), min(matrix.shape) - 1)
    if n_axes < 1 or (weight**2).sum() - n_cells * (mean @ mean) < 1e-9:
        return np.zeros((0, n_genes))
    centred = LinearOperator(
        matrix.shape,
        matvec=lambda x: matrix @ x.ravel() - mean @ x.ravel(),
        rmatvec=lambda y: matrix.T @ y.ravel() - mean * y.sum(),
        dtype=np.float64,
    )
    _, spreads, found = svds(centred, k=n_axes, v0=np.random.default_rng(0).standard_normal(min(matrix.shape)))
    axes = np.zeros((n_axes, n_genes))
    axes[:, genes] = (spreads / spreads.max())[:, None] ** PREFERENCE * found
    return axes[spreads > 1e-6 * spreads.max()][::-1]


def _sample(corpus: Corpus, seed: int) -> list[GeneTokens]:
    """Gene tokens of some cells of every slice that has any; of some slices where there are many."""
    chosen = np.sort(generator(seed, 1).permutation(len(corpus.slice_ids))[:MOST_SLICES])
    scales = ((number, corpus.gene_scale(corpus.slice_ids[number]).tokens) for number in chosen)
    return [tokens.take(_some(len(tokens.lengths), generator(seed, int(number)))) for number, tokens in scales if len(tokens.lengths)]


def _some(n: int, rng: np.random.Generator) -> IntArray:
    return rng.permutation(n)[:CELLS_PER_SLICE]
