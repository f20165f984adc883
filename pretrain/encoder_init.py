"""Where an encoder that is trained from scratch starts: with genes that vary together lying together.

A randomly started encoder spends its first epochs finding out which genes go together, and until then gives all cells
nearly the same embedding, which starves the contrastive loss. Both are cheap to compute beforehand.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_matrix, diags, vstack
from scipy.sparse.linalg import LinearOperator, svds

from corpus.slice import FloatArray, IntArray
from corpus.store import Corpus
from pretrain.data import generator
from stofm.cell_encoder import CellEncoder
from stofm.fields import N_LEADING_SPECIALS
from stofm.gene_tokens import GeneTokens

CELLS_PER_SLICE = 1000
CELLS_TO_CENTRE = 32  # of every slice


@torch.no_grad()
def start_from_coexpression(encoder: CellEncoder, corpus: Corpus, *, seed: int) -> None:
    """Set the gene embeddings of an untrained encoder to the co-expression of a corpus, then centre and scale its output.

    Gene embeddings become the leading principal axes of which genes cells express, measured within slices, every slice
    weighing the same, in a random basis and with the spread that BERT starts with. The head is shifted and scaled so
    that embeddings of the corpus have mean zero before they are brought to unit length.
    """
    sample = _sample(corpus, seed)
    embeddings = encoder.bert.embeddings.word_embeddings.weight  # (ids, width)
    n_genes, width = len(corpus.vocab.gene_ids), embeddings.shape[1]
    axes = coexpression_axes(sample, n_genes, n_axes=min(width, n_genes - 1))  # (G, n_axes)
    if axes.shape[1]:
        basis = np.linalg.qr(generator(seed, 0).standard_normal((width, axes.shape[1])))[0]  # (width, n_axes)
        loadings = torch.from_numpy(axes @ basis.T).to(embeddings)
        spread = encoder.bert.config.initializer_range
        embeddings[N_LEADING_SPECIALS : N_LEADING_SPECIALS + n_genes] = loadings * (spread / loadings.square().mean().sqrt())
    encoder.eval()
    cells = [tokens.padded(np.arange(min(CELLS_TO_CENTRE, len(tokens.lengths))), cls_token=corpus.vocab.cls_token) for tokens in sample]
    heads = torch.cat([encoder.proj(encoder.hidden(torch.from_numpy(one))[:, 0]) for one in cells])  # (cells, 256)
    scale = heads.std(dim=0).mean().clamp(min=1e-6)
    encoder.proj.weight /= scale
    encoder.proj.bias.copy_((encoder.proj.bias - heads.mean(dim=0)) / scale)
    encoder.train()


def coexpression_axes(slices: list[GeneTokens], n_genes: int, *, n_axes: int) -> FloatArray:
    """Return the leading principal axes of expressed-or-not within slices, (G, n_axes), each times the root of its spread.

    A cell counts the same however many genes it expresses, and a slice however many cells it has.
    """
    blocks, means, scales = [], [], []
    for tokens in slices:
        share = np.repeat(1 / np.sqrt(np.maximum(tokens.lengths, 1)), tokens.lengths)
        columns = tokens.tokens.astype(np.int64) - N_LEADING_SPECIALS
        block = csr_matrix((share, columns, tokens.offsets), shape=(len(tokens.lengths), n_genes))
        mean = np.asarray(block.mean(axis=0)).ravel()
        spread = block.multiply(block).sum() - len(tokens.lengths) * (mean @ mean)
        blocks.append(block)
        means.append(mean)
        scales.append(1 / np.sqrt(spread) if spread > 1e-9 else 0.0)
    of_slice = np.repeat(np.arange(len(blocks)), [block.shape[0] for block in blocks])
    weight = np.array(scales)[of_slice]
    matrix, centre = diags(weight) @ vstack(blocks).tocsr(), np.array(means)  # (cells, G), (slices, G)
    n_axes = min(n_axes, matrix.shape[0] - 1)
    if n_axes < 1:
        return np.zeros((n_genes, 0))
    centred = LinearOperator(
        matrix.shape,
        matvec=lambda x: matrix @ x.ravel() - weight * (centre @ x.ravel())[of_slice],
        rmatvec=lambda y: matrix.T @ y.ravel() - centre.T @ np.bincount(of_slice, weight * y.ravel(), len(blocks)),
        dtype=np.float64,
    )
    _, spreads, axes = svds(centred, k=n_axes, v0=np.ones(min(matrix.shape)))
    return axes.T * np.sqrt(spreads)


def _sample(corpus: Corpus, seed: int) -> list[GeneTokens]:
    """Gene tokens of some cells of every slice that has any."""
    scales = (corpus.gene_scale(slice_id).tokens for slice_id in corpus.slice_ids)
    return [tokens.take(_some(len(tokens.lengths), generator(seed, number))) for number, tokens in enumerate(scales) if len(tokens.lengths)]


def _some(n: int, rng: np.random.Generator) -> IntArray:
    return rng.permutation(n)[:CELLS_PER_SLICE]
