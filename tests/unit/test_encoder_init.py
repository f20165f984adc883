"""Where an encoder starts: genes that vary together lie together, and embeddings are centred."""

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from corpus.store import Corpus
from pretrain.encoder_init import OF_ITSELF, expression_axes, level_weights, set_start, start_from_coexpression
from stofm.cell_encoder import CellEncoder, CellEncoderConfig, embed_cells
from stofm.gene_tokens import GeneTokens


def two_programmes(n_cells: int, n_genes: int) -> GeneTokens:
    """Cells that express either the first or the second half of the genes, all alike."""
    rng = default_rng(0)
    half = n_genes // 2
    cells = [2 + half * (number % 2) + np.sort(rng.choice(half, half - 2, replace=False)) for number in range(n_cells)]
    return GeneTokens.of_lengths(np.concatenate(cells).astype(np.uint16), np.array([len(cell) for cell in cells]))


def test_one_axis_tells_programmes_apart() -> None:
    first = expression_axes([two_programmes(60, 20)], 20, n_axes=1)[:, 0]
    assert (np.sign(first[:10]) == np.sign(first[0])).all()
    assert (np.sign(first[10:]) == -np.sign(first[0])).all()


def test_axes_ignore_how_many_cells_a_slice_has() -> None:
    one, other = two_programmes(40, 20), two_programmes(60, 12)
    twice = GeneTokens.of_lengths(np.tile(one.tokens, 2), np.tile(one.lengths, 2))
    first, second = (expression_axes([copy, other], 20, n_axes=2) for copy in (one, twice))
    np.testing.assert_allclose(np.abs(first), np.abs(second), atol=1e-6)


def test_there_are_no_more_axes_than_cells_vary_in() -> None:
    assert expression_axes([two_programmes(40, 20), two_programmes(60, 12)], 20, n_axes=64).shape[1] <= 20


def test_levels_alone_tell_cells_apart() -> None:
    """Cells that all express the same genes in the same order, half of them the first ones far more than the last."""
    genes = np.arange(2, 12, dtype=np.uint16)
    levels = [np.linspace(255, 100 if number % 2 else 200, 10).astype(np.uint8) for number in range(30)]
    tokens = GeneTokens.of_lengths(np.tile(genes, 30), np.full(30, 10), np.concatenate(levels))
    first = expression_axes([tokens], 10, n_axes=3)[:, 0]
    assert (np.sign(first[0]) == -np.sign(first[5:])).all()


def test_slices_that_do_not_vary_give_no_axes() -> None:
    constant = GeneTokens.of_lengths(np.array([2, 3], np.uint16), np.array([2]))
    assert expression_axes([constant], 4, n_axes=3).shape == (4, 0)


def started(corpus: Corpus, *, n_layers: int, width: int) -> tuple[GeneTokens, np.ndarray]:
    """Cells of the first slice, and their embeddings by an encoder at its start."""
    torch.manual_seed(0)
    config = CellEncoderConfig(n_layers=n_layers, width=width, n_heads=2, ffn_dim=32)
    encoder = CellEncoder.from_scratch(config, n_tokens=corpus.vocab.n_tokens, max_tokens=corpus.scales.rank_value.max_tokens)
    start_from_coexpression(encoder, corpus, seed=0)
    tokens = corpus.gene_scale(corpus.slice_ids[0]).tokens
    return tokens, embed_cells(encoder.eval(), tokens, cls_token=corpus.vocab.cls_token)


def test_embeddings_start_centred_and_apart(tiny_corpus: Corpus) -> None:
    _, embeddings = started(tiny_corpus, n_layers=1, width=32)
    alike = embeddings @ embeddings.T
    assert np.abs(alike[~np.eye(len(alike), dtype=bool)]).mean() < 0.6


def test_embeddings_start_as_scores_on_the_axes(tiny_corpus: Corpus) -> None:
    """What BERT's own parts compute is, up to their bending, a linear function of roots of shares: neighbours in one are neighbours in the other."""
    tokens, embeddings = started(tiny_corpus, n_layers=1, width=64)
    assert tokens.levels is not None
    sums = np.zeros((len(tokens.lengths), tiny_corpus.vocab.n_tokens))
    np.add.at(sums, (np.repeat(np.arange(len(sums)), tokens.lengths), tokens.tokens), level_weights(tokens.levels))
    profiles = sums / (sums.sum(axis=1, keepdims=True) + OF_ITSELF)
    fitted = np.linalg.lstsq(np.hstack([profiles, np.ones((len(profiles), 1))]), embeddings, rcond=None)[0]
    explained = np.hstack([profiles, np.ones((len(profiles), 1))]) @ fitted
    cosine = (explained * embeddings).sum(1) / np.linalg.norm(explained, axis=1)
    assert np.median(cosine) > 0.95


def test_a_gene_weighs_the_root_of_its_share() -> None:
    np.testing.assert_allclose(level_weights(np.array([255, 255 - 32, 255 - 64])), [1, 0.5, 0.25])  # 16 levels an octave
    assert level_weights(np.array([1]))[0] < level_weights(np.array([0]))[0] < 1  # of no known level


@torch.no_grad()
@pytest.mark.parametrize("n_genes", [5, 20, 60, 200, 500])
def test_the_first_layer_attends_as_levels_weigh_in_cells_of_any_number_of_genes(n_genes: int) -> None:
    """Over the tokens of one cell, whatever its genes; layer norms bend what genes far longer than others weigh."""
    corpus_like = [two_programmes(60, 600)]
    torch.manual_seed(0)
    encoder = CellEncoder.from_scratch(CellEncoderConfig(n_layers=2, width=64, n_heads=2, ffn_dim=32), n_tokens=602, max_tokens=600)
    set_start(encoder, corpus_like, n_genes=600, cls_token=1, seed=0)
    encoder.bert.set_attn_implementation("eager")
    tokens = torch.cat([torch.tensor([1]), 2 + torch.randperm(600)[:n_genes]])[None]
    levels = torch.cat([torch.tensor([0]), torch.randint(1, 256, (n_genes,))])[None]
    asked = {"token_type_ids": levels, "attention_mask": torch.ones_like(tokens), "output_attentions": True}
    found = encoder.bert(tokens, **asked).attentions[0][0, :, 0]  # of `<cls>`, (heads, tokens)
    weights = np.append(OF_ITSELF, level_weights(levels[0, 1:].numpy()))
    np.testing.assert_array_equal(found[0], found[1])
    assert np.quantile(np.abs(np.log(found[0].numpy() * weights.sum() / weights)), 0.9) < 0.15


def test_an_untrained_layer_more_changes_nothing(tiny_corpus: Corpus) -> None:
    """Whatever layers beyond the first add starts at zero."""
    found = []
    for n_layers in (1, 4):
        _, embeddings = started(tiny_corpus, n_layers=n_layers, width=32)
        found.append(embeddings @ embeddings.T)
    np.testing.assert_allclose(found[0], found[1], atol=0.02)
