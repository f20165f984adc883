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
from scipy.special import gammaln
from torch import Tensor, nn

from corpus.slice import FloatArray, IntArray
from corpus.store import Corpus
from pretrain.data import generator
from pretrain.shared_axes import shared_axes
from stofm.cell_encoder import CellEncoder
from stofm.fields import N_LEADING_SPECIALS
from stofm.gene_tokens import GeneTokens

MOST_SLICES, CELLS_PER_SLICE = 60, 1500
AXES_PER_SLICE, CELLS_PER_AXIS = 45, 8  # at most so many axes, found on at least so many cells each
PREFERENCE = 0.02  # power of its spread that an axis is long: it decides on order alone, where axes weigh the same
CELLS_TO_CENTRE = 32  # of every slice
STEEP, FLAT, POWER = 1.0, 30.0, 0.5  # a rank weighs (rank + s) ** -POWER; s is STEEP in cells of few genes, FLAT in those of many
FEW, MANY = 20, 2000  # genes of such cells; between them the two weights are mixed
TYPICAL = 65  # genes of the cells that an encoder of one layer is made for, for it cannot count
OF_ITSELF = 4.0  # what `<cls>` weighs beside its genes, so that a cell of few genes stays nearer to the middle
CONSTANT, EARLY, LATE, COUNT = range(N_OWN := 4)  # the dimensions that no gene uses
LINEAR = 3.0  # the constant is this much longer than any gene or cell beside it, so that layer norms hardly bend what they scale
UNIT = 0.02  # length of a rank's logarithm beside the constant, as small for the same reason


@torch.no_grad()
def start_from_coexpression(encoder: CellEncoder, corpus: Corpus, *, seed: int) -> None:
    """Set an untrained encoder to give cells their scores on axes that the slices of a corpus share (`rank_axes`), centred, at unit length.

    - Gene embeddings are these axes in a random basis. Of four further dimensions one is the same for all tokens and so long that layer
      norms scale all tokens alike; two hold logarithms of the rank, one the mean of the first over a cell, which tells how many genes it has.
    - The first layer finds that mean. The second attends by rank, the more steeply the fewer genes there are, and hands on the mean it finds.
      Whatever else the layers add starts at zero.
    - The head turns the result, centred over the corpus, into the embedding: scores on the axes.
    """
    set_start(encoder, _sample(corpus, seed), n_genes=len(corpus.vocab.gene_ids), cls_token=corpus.vocab.cls_token, seed=seed)


@torch.no_grad()
def set_start(encoder: CellEncoder, sample: list[GeneTokens], *, n_genes: int, cls_token: int, seed: int) -> None:
    """As `start_from_coexpression`, from some cells of every slice."""
    bert, width = encoder.bert, encoder.bert.config.hidden_size
    axes = rank_axes(sample, n_genes, n_axes=min(width - N_OWN, len(encoder.proj.weight), n_genes - 1))  # (G, n_axes)
    if not axes.shape[1]:
        return
    basis = np.linalg.qr(generator(seed, 0).standard_normal((width - N_OWN, axes.shape[1])))[0]  # (width - 4, n_axes)
    genes = torch.from_numpy(axes @ basis.T).float()
    genes *= bert.config.initializer_range / genes.square().mean().sqrt()
    constant = LINEAR * float(genes.norm(dim=1).max())
    words, positions, kinds = (
        table.weight.zero_()
        for table in (bert.embeddings.word_embeddings, bert.embeddings.position_embeddings, bert.embeddings.token_type_embeddings)
    )
    words[N_LEADING_SPECIALS : N_LEADING_SPECIALS + n_genes, N_OWN:] = genes
    kinds[:, CONSTANT] = constant
    rank = torch.arange(len(positions) - 1)
    for dimension, shift in ((EARLY, STEEP), (LATE, FLAT)):
        positions[:, dimension] = UNIT * constant * torch.cat([torch.tensor([-math.log(OF_ITSELF) / POWER]), torch.log(rank + shift)])
    for layer in bert.encoder.layer:
        layer.attention.output.dense.weight.zero_()
        layer.output.dense.weight.zero_()
    attentions: list[Any] = [layer.attention for layer in bert.encoder.layer[:2]]
    for attention in attentions:  # all tokens alike, all they hold
        for linear in (attention.self.query, attention.self.key):
            linear.weight.zero_()
            linear.bias.zero_()
        nn.init.eye_(attention.self.value.weight)
    if len(attentions) == 2:
        attentions[0].output.dense.weight[COUNT, EARLY] = 1  # the mean of the tokens' first logarithm
    _attend_by_rank(attentions[-1], counts=len(attentions) == 2)

    encoder.eval()
    cells = [tokens.padded(np.arange(min(CELLS_TO_CENTRE, len(tokens.lengths))), cls_token=cls_token) for tokens in sample]
    _spread(attentions[-1].output.dense, encoder, cells, to=width**0.5 / LINEAR)
    encoder.proj.weight.zero_()[: axes.shape[1], N_OWN:] = torch.from_numpy(basis.T).float()
    _spread(encoder.proj, encoder, cells, to=1.0)
    encoder.train()


def share_of_flat(n_genes: FloatArray) -> FloatArray:
    """How far the weights of a cell of so many genes are the flat ones: 0 at `FEW`, 1 at `MANY`, linear in the mean logarithm of its ranks."""
    few, many = _mean_log_rank(np.array([FEW, MANY], float))
    return (_mean_log_rank(n_genes) - few) / (many - few)


def rank_weights(rank: FloatArray, n_genes: FloatArray) -> FloatArray:
    """What genes of these ranks weigh, from 0 on, in cells of so many genes; `<cls>` weighs `OF_ITSELF`."""
    share = share_of_flat(n_genes)
    return np.exp(-POWER * ((1 - share) * np.log(rank + STEEP) + share * np.log(rank + FLAT)))


def _mean_log_rank(n_genes: FloatArray) -> FloatArray:
    """Mean of what the dimension `EARLY` holds, in its units, over the tokens of a cell."""
    return (gammaln(n_genes + STEEP) - gammaln(STEEP) - math.log(OF_ITSELF) / POWER) / (n_genes + 1)


def _attend_by_rank(attention: Any, *, counts: bool) -> None:
    """Set an attention layer, transformers' BertAttention, whose queries and keys are zero, to weigh tokens as `rank_weights` says.

    It goes by the count, or as for `TYPICAL` genes, and hands on all that genes use.
    """
    read = attention.self
    width = len(read.query.bias)
    unit, mean = UNIT * width**0.5, width**-0.5  # after a layer norm of a vector that is hardly more than its constant: scale, and what it takes off
    few, many = _mean_log_rank(np.array([FEW, MANY], float))
    # The share of the flat weight is `fixed`, and `per_count` times the count that the layer before left; that of the steep one is the rest.
    per_count = 1 / (unit * (many - few)) if counts else 0.0
    fixed = (2 * mean / unit - few) / (many - few) if counts else float(share_of_flat(np.array(float(TYPICAL))))
    for first in range(0, width, read.attention_head_size):
        for place, dimension, sign in ((first, EARLY, -1), (first + 1, LATE, 1)):
            scale = -POWER * read.attention_head_size**0.5
            read.query.weight[place, COUNT] = scale * sign * per_count
            read.query.bias[place] = scale * (sign * fixed + (dimension == EARLY))
            read.key.weight[place, dimension] = 1 / unit
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


def rank_axes(slices: list[GeneTokens], n_genes: int, *, n_axes: int) -> FloatArray:
    """Return (G, at most n_axes) on which cells of a slice are as far apart as on its own leading principal axes of ranks, all at one length.

    A cell's genes have weights that fall with their rank (`rank_weights`), of length 1 together, so that a cell counts the same however many
    genes it expresses. Axes that no slice has together share dimensions (`shared_axes`).
    """
    of_slices = [axes for tokens in slices if len(axes := _axes_of_slice(tokens, n_genes))]
    return shared_axes(of_slices, n_axes) if of_slices else np.zeros((n_genes, 0))


def _axes_of_slice(tokens: GeneTokens, n_genes: int) -> FloatArray:
    """Leading principal axes of one slice, (k, G), nearly of one length, the first one first; none if cells are alike."""
    n_cells, lengths = len(tokens.lengths), tokens.lengths
    rank = np.arange(len(tokens.tokens)) - np.repeat(tokens.offsets[:-1], lengths)
    weight = rank_weights(rank.astype(float), np.repeat(lengths, lengths).astype(float))
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
