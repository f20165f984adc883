"""The joint stage: gradients reach the encoder through the transformer, in chunks as at once; what is hidden stays hidden; targets do not move."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from corpus.build import embedded_shards
from corpus.shards import write_view
from corpus.view import View
from pretrain.config import JointStageConfig, SE2StageConfig
from pretrain.joint import JOINT, joint_stage
from pretrain.objectives import SE2Objectives
from pretrain.stages import Stage
from pretrain.watch import spread_of
from stofm.cell_encoder import CellEncoder, CellEncoderConfig, embed_cells
from stofm.se2_transformer import SE2Transformer, SE2TransformerConfig

SE2 = SE2StageConfig()


def new_encoder(corpus, seed: int = 0) -> CellEncoder:
    """An encoder that tells cells apart: gene embeddings as wide as they are long."""
    torch.manual_seed(seed)
    sizes = CellEncoderConfig(n_layers=1, width=32, n_heads=2, ffn_dim=32)
    encoder = CellEncoder.from_scratch(sizes, n_tokens=corpus.vocab.n_tokens, max_tokens=corpus.scales.rank_value.max_tokens)
    torch.nn.init.normal_(encoder.bert.embeddings.word_embeddings.weight)
    torch.nn.init.normal_(encoder.bert.encoder.layer[0].attention.output.dense.weight, std=0.5)
    return encoder.eval()


@pytest.fixture(scope="module")
def embed(tiny_corpus, tmp_path_factory):
    """Embed the tiny corpus with an encoder."""

    def view_of(encoder: CellEncoder, name: str) -> View:
        folder = tmp_path_factory.mktemp("embedded") / name
        cells = partial(embed_cells, encoder, cls_token=tiny_corpus.vocab.cls_token)
        shards = [shard for one in tiny_corpus.slice_ids for shard in embedded_shards(tiny_corpus, folder, one, cells, encoder_id=name)]
        write_view(folder, shards, made_from={"encoder": name})
        return View(folder)

    return view_of


@pytest.fixture(scope="module")
def frozen(tiny_corpus, embed) -> View:
    return embed(new_encoder(tiny_corpus), "frozen")


def stage_of(corpus, view: View, *, make_view=None, encoder: CellEncoder | None = None, **settings) -> Stage:
    torch.manual_seed(1)
    objectives = SE2Objectives.of(SE2, SE2Transformer(SE2TransformerConfig(n_layers=1, n_heads=4, n_neighbors=6, dropout=0.0)))
    encoder = new_encoder(corpus) if encoder is None else encoder
    return joint_stage(
        JointStageConfig(**{"tokens_per_chunk": 500, **settings}), SE2, encoder, objectives, corpus.token_view(), view,
        make_view=make_view, cls_token=corpus.vocab.cls_token, seed=0,
    )  # fmt: skip


def gradients(stage: Stage, batch) -> dict[str, torch.Tensor]:
    stage.model.zero_grad()
    sum(value / batch.counts()[name] for name, value in stage.model(batch).items()).backward()
    return {name: parameter.grad.clone() for name, parameter in stage.model.named_parameters() if parameter.grad is not None}


def test_every_weight_that_reads_genes_gets_a_gradient(tiny_corpus, frozen):
    stage = stage_of(tiny_corpus, frozen)
    found = gradients(stage, stage.micro_batch([(0, 0)]))
    missing = {name for name, _ in stage.model.named_parameters()} - set(found)
    assert missing == set()
    assert all(found[name].abs().sum() > 0 for name in ("encoder.proj.weight", "encoder.bert.embeddings.word_embeddings.weight"))


def test_chunks_change_neither_losses_nor_gradients(tiny_corpus, frozen):
    whole, in_chunks = (stage_of(tiny_corpus, frozen, tokens_per_chunk=budget) for budget in (None, 300))
    batch, chunked = whole.micro_batch([(0, 1)]), in_chunks.micro_batch([(0, 1)])
    assert (len(batch.chunks), len(chunked.chunks) > 3) == (1, True)
    expected = gradients(whole, batch)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())  # some, as of biases of keys, are rounding alone
    for name, gradient in gradients(in_chunks, chunked).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6 * largest, msg=name)


def test_visible_cells_read_as_the_encoder_embeds_them_and_hidden_ones_are_not_embedded(tiny_corpus, frozen):
    stage = stage_of(tiny_corpus, frozen)
    batch = stage.micro_batch([(0, 2)])
    live, is_masked = stage.model.live(batch), batch.seen.is_masked
    stored = torch.from_numpy(frozen.read(2)["cell_embeddings"].astype(np.float32))
    n = len(stored)
    torch.testing.assert_close(live.cell_embeddings[0, :n][~is_masked[0, :n]], stored[~is_masked[0, :n]], atol=2e-3, rtol=0)  # stored as float16
    placed = {tuple(place) for places in batch.places for place in places.tolist()}
    assert placed.isdisjoint(map(tuple, is_masked.nonzero().tolist()))
    assert len(placed) == n - int(is_masked.sum())


def test_targets_stay_those_of_the_beginning_whatever_the_encoder_has_become(tiny_corpus, frozen, embed):
    other = embed(new_encoder(tiny_corpus, seed=5), "other")
    stage = stage_of(tiny_corpus, frozen, make_view=lambda border, step: other, refresh_every=4)
    stage.refresh(0, 0)
    before = stage.micro_batch([(1, 0)])
    stage.refresh(4, 4)
    after = stage.micro_batch([(1, 0)])
    for name in ("embeddings", "pair_distances", "predicted"):
        assert torch.equal(getattr(before.masked, name), getattr(after.masked, name)), name
    assert torch.equal(before.masked.seen.cell_embeddings, after.masked.seen.cell_embeddings)
    assert not torch.equal(before.seen.cell_embeddings[before.seen.is_virtual], after.seen.cell_embeddings[after.seen.is_virtual])


def test_making_all_embeddings_alike_does_not_pay(tiny_corpus, frozen):
    """With targets of its own making, an encoder that gives every cell one embedding would be right about all of them."""
    stage = stage_of(tiny_corpus, frozen)
    torch.nn.init.zeros_(stage.model.encoder.proj.weight)
    torch.nn.init.ones_(stage.model.encoder.proj.bias)
    batch = stage.micro_batch([(0, 0)])
    assert spread_of(stage.embed(stage.model, batch).detach())["spread"] < 1e-6, "the encoder has collapsed"
    targets = batch.masked.embeddings
    assert not targets.requires_grad
    least = 1 - float(targets.mean(0).norm())  # what the best answer that is the same for all cells costs a cell
    stage.model.eval()
    assert least > 1e-4, "an untrained encoder tells cells apart, if hardly"
    assert float(stage.model(batch)["mcm"].detach()) / len(targets) > least


def test_embeddings_do_not_collapse_in_training(tiny_corpus, frozen):
    stage = stage_of(tiny_corpus, frozen)
    batch = stage.micro_batch([(0, 0)])
    before = spread_of(stage.embed(stage.model, batch).detach())
    optimizer = torch.optim.Adam(stage.model.parameters(), lr=1e-3)
    for step in range(12):
        some = stage.micro_batch([(step, step % stage.n_units)])
        sum(value / some.counts()[name] for name, value in stage.model(some).items()).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = spread_of(stage.embed(stage.model, batch).detach())
    assert after["effective_rank"] > 0.5 * before["effective_rank"]
    assert after["spread"] > 0.5 * before["spread"]


def test_a_stage_refreshes_once_an_epoch_unless_told_otherwise(tiny_corpus, frozen):
    stage = replace(stage_of(tiny_corpus, frozen, epochs=3), name=JOINT)
    assert stage.refresh_every == stage.n_units
    assert [stage.border_before(step) for step in (0, stage.n_units - 1, stage.n_units)] == [0, 0, stage.n_units]
    assert stage.border_after(2 * stage.n_units) == stage.n_steps == 3 * stage.n_units
