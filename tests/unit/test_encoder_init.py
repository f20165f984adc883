"""Where an encoder starts: genes that vary together lie together, and embeddings are centred."""

import numpy as np
import torch
from numpy.random import default_rng

from corpus.store import Corpus
from pretrain.encoder_init import coexpression_axes, start_from_coexpression
from stofm.cell_encoder import CellEncoder, CellEncoderConfig, embed_cells
from stofm.gene_tokens import GeneTokens


def two_programmes(n_cells: int, n_genes: int) -> GeneTokens:
    """Cells that express either the first or the second half of the genes."""
    rng = default_rng(0)
    half = n_genes // 2
    cells = [2 + half * (number % 2) + np.sort(rng.choice(half, half - 2, replace=False)) for number in range(n_cells)]
    return GeneTokens.of_lengths(np.concatenate(cells).astype(np.uint16), np.array([len(cell) for cell in cells]))


def test_the_first_axis_tells_programmes_apart() -> None:
    first = coexpression_axes([two_programmes(60, 20)], 20, n_axes=4)[:, -1]  # svds sorts upwards
    assert (np.sign(first[:10]) == np.sign(first[0])).all()
    assert (np.sign(first[10:]) == -np.sign(first[0])).all()


def test_axes_ignore_how_many_cells_a_slice_has() -> None:
    one, other = two_programmes(40, 20), two_programmes(60, 12)
    twice = GeneTokens.of_lengths(np.tile(one.tokens, 2), np.tile(one.lengths, 2))
    first, second = (coexpression_axes([copy, other], 20, n_axes=2) for copy in (one, twice))
    np.testing.assert_allclose(np.abs(first), np.abs(second), atol=1e-6)


def test_slices_that_do_not_vary_give_no_axes() -> None:
    constant = GeneTokens.of_lengths(np.array([2, 3], np.uint16), np.array([2]))
    assert coexpression_axes([constant], 4, n_axes=3).shape == (4, 0)


def test_embeddings_start_centred_and_apart(tiny_corpus: Corpus) -> None:
    torch.manual_seed(0)
    config = CellEncoderConfig(n_layers=1, width=32, n_heads=2, ffn_dim=32)
    encoder = CellEncoder.from_scratch(config, n_tokens=tiny_corpus.vocab.n_tokens, max_tokens=tiny_corpus.scales.rank_value.max_tokens)
    start_from_coexpression(encoder, tiny_corpus, seed=0)
    tokens = tiny_corpus.gene_scale(tiny_corpus.slice_ids[0]).tokens
    embeddings = embed_cells(encoder.eval(), tokens, cls_token=tiny_corpus.vocab.cls_token)
    alike = embeddings @ embeddings.T
    assert np.abs(alike[~np.eye(len(alike), dtype=bool)]).mean() < 0.6
