"""Fine-tuning: layers of the SE(2) transformer learn the labels too; what is kept is what was added to the model's weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from corpus.gene_ids import map_to_human
from corpus.readers import sections_of, slice_of
from corpus.scales import extract_gene_scale, sub_slice_arrays
from corpus.slice import BoolArray, FloatArray, IntArray, SliceSpec, StrArray
from corpus.sub_slices import cut_sub_slices
from corpus.virtual_cells import make_virtual_cells
from downstream.embedding import Embedder, embed
from stofm.batch import SubSliceBatch, collate
from stofm.cell_encoder import embed_cells
from stofm.config import FrozenModel
from stofm.errors import ConfigError, DataError
from stofm.fields import EMBEDDING_DIM, UNS_STOFM, X_STOFM
from stofm.se2_transformer import SE2Transformer

if TYPE_CHECKING:
    from anndata import AnnData

LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
Delta = dict[str, FloatArray]  # parameter name -> what is added to it, float32


class FinetuneConfig(FrozenModel):
    """What is trained beside the head, and for how long."""

    depth: Literal["last", "all", "lora"] = Field("last", description="The last layer, all of the transformer, or low-rank additions to all layers.")
    rank: int = Field(8, ge=1, description="Rank of the additions (lora).")
    epochs: int = Field(20, ge=1, description="Most passes over the labelled slices.")
    patience: int = Field(3, ge=1, description="Passes without a lower loss on the held-out blocks, after which to stop.")
    lr: float = Field(3e-4, gt=0)
    seed: int = 0


@dataclass(frozen=True, eq=False)
class _Example:
    """One sub-slice: what the transformer reads of it, and of the cells it owns the classes, (n,) int64, -1 without, and which are held out."""

    batch: SubSliceBatch
    classes: Tensor
    is_held: Tensor


def fine_tune(
    slices: Mapping[str, AnnData],
    examples: Sequence[tuple[FloatArray, StrArray]],
    is_held: Sequence[BoolArray],
    embedder: Embedder | None,
    config: FinetuneConfig,
    *,
    weights_sha256: str,
) -> tuple[Delta, list[tuple[FloatArray, StrArray]]]:
    """Train on the sub-slices of labelled slices, stopped early by cells that are held out.

    Parameters
    ----------
    examples : embeddings and labels of each slice
    is_held : (n_cells,) bool of each slice

    Returns
    -------
    what is added to the weights ; the examples with the embeddings of the tuned model
    """
    embedder = _require_model(embedder, weights_sha256)
    names = np.unique(np.concatenate([labels for _, labels in examples]))
    classes = names[names != ""]
    if len(classes) < 2:
        raise DataError(
            f"labels: found {len(classes)} classes {classes.tolist()}; expected two or more. Name another column, or add labelled slices."
        )
    sub_slices = [
        one
        for (name, table), (_, labels), held in zip(slices.items(), examples, is_held, strict=True)
        for one in _sub_slices(table, name, np.where(labels == "", -1, np.searchsorted(classes, labels)), held, embedder)
    ]
    base = embedder.model.se2_transformer
    with torch.random.fork_rng():  # dropout draws from the global state
        torch.manual_seed(config.seed)
        delta = _train(copy.deepcopy(base), sub_slices, len(classes), config)
    features = [tuned_features(table, name, delta, embedder, weights_sha256=weights_sha256) for name, table in slices.items()]
    return delta, [(tuned, labels) for tuned, (_, labels) in zip(features, examples, strict=True)]


def tuned_features(table: AnnData, name: str, delta: Mapping[str, FloatArray], embedder: Embedder | None, *, weights_sha256: str) -> FloatArray:
    """Embed an embedded table again with the tuned model, (n_cells, 256) float32."""
    embedder = _require_model(embedder, weights_sha256)
    tuned = copy.deepcopy(embedder.model.se2_transformer)
    with torch.no_grad():
        for parameter, change in delta.items():
            weight = tuned.get_parameter(parameter)
            weight.add_(torch.from_numpy(change).to(weight))
    model = replace(embedder.model, se2_transformer=tuned.eval())
    return np.asarray(embed(table.copy(), replace(embedder, model=model), _spec_of(table, name)).obsm[X_STOFM])


def _require_model(embedder: Embedder | None, weights_sha256: str) -> Embedder:
    if embedder is None:
        raise ConfigError("fine-tuned head: found no model; expected the one that embedded the slices. Name its folder with --model.")
    if embedder.model.weights_sha256 != weights_sha256:
        raise ConfigError(f"model {embedder.model.folder}: its weights are {embedder.model.weights_sha256[:12]}; expected "
                          f"{weights_sha256[:12]}, those that embedded the slices. Name that model.")  # fmt: skip
    if embedder.scales.scheme != "tissue":
        raise ConfigError(f"model {embedder.model.folder}: found `scheme: {embedder.scales.scheme}`; fine-tuning expects `tissue`. Use a probe.")
    return embedder


def _spec_of(table: AnnData, name: str) -> SliceSpec:
    """How the table was read when it was embedded."""
    return SliceSpec(**{**json.loads(table.uns[UNS_STOFM]["slice"]), "path": f"{name}.h5ad"})


def _sub_slices(table: AnnData, name: str, classes: IntArray, is_held: BoolArray, embedder: Embedder) -> Iterator[_Example]:
    """Yield every sub-slice of a table that owns a labelled cell."""
    encoder, device = embedder.model.cell_encoder, next(embedder.model.se2_transformer.parameters()).device
    for spec in sections_of(table, _spec_of(table, name)):
        st_slice = slice_of(table, spec)
        ids, _ = map_to_human(st_slice, embedder.tables)
        scale = extract_gene_scale(st_slice.counts, ids, st_slice.coords_um, embedder.vocab, embedder.scales.rank_value)
        embeddings = embed_cells(encoder, scale.tokens, cls_token=embedder.vocab.cls_token)
        virtual = make_virtual_cells(scale.coords_um, embeddings, embedder.scales.virtual_cells)
        for part in cut_sub_slices(scale.coords_um, scale.keys, embedder.scales.sub_slices):
            rows = st_slice.source_rows[scale.rows[part.owned]]
            if (classes[rows] >= 0).any():
                batch = collate([sub_slice_arrays(scale, embeddings, virtual, part)]).to(device)
                yield _Example(batch, torch.from_numpy(classes[rows]).to(device), torch.from_numpy(is_held[rows]).to(device))


def _train(model: SE2Transformer, sub_slices: Sequence[_Example], n_classes: int, config: FinetuneConfig) -> Delta:
    """Train a copy of the transformer under a linear layer; returns what its best epoch added to the weights."""
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trained = _adapt(model, config)
    linear = nn.Linear(EMBEDDING_DIM, n_classes).to(next(model.parameters()).device)
    optimizer = torch.optim.AdamW([*trained, *linear.parameters()], lr=config.lr, weight_decay=0.01)
    learned = torch.cat([one.classes[(one.classes >= 0) & ~one.is_held] for one in sub_slices])
    cost = nn.CrossEntropyLoss(len(learned) / (n_classes * learned.bincount(minlength=n_classes).clamp(min=1)), reduction="sum")

    def loss_of(one: _Example, is_asked: Tensor) -> Tensor:
        scores = linear(model(one.batch).cell_repr[0, : len(one.classes)][is_asked])
        return cost(scores, one.classes[is_asked])

    best, lowest, since = _changes(model, before), float("inf"), 0
    order = torch.Generator().manual_seed(config.seed)
    for _ in range(config.epochs):
        model.train()
        for number in torch.randperm(len(sub_slices), generator=order).tolist():
            one = sub_slices[number]
            is_asked = (one.classes >= 0) & ~one.is_held
            if is_asked.any():
                optimizer.zero_grad()
                (loss_of(one, is_asked) / is_asked.sum()).backward()
                optimizer.step()
        model.eval()
        with torch.no_grad():
            now = float(sum(loss_of(one, is_held) for one in sub_slices if (is_held := (one.classes >= 0) & one.is_held).any()))
        since += 1
        if now < lowest:
            best, lowest, since = _changes(model, before), now, 0
        if since == config.patience:
            break
    return best


def _adapt(model: SE2Transformer, config: FinetuneConfig) -> list[nn.Parameter]:
    """Make the parameters that `config.depth` names trainable, and no others; returns them."""
    model.requires_grad_(config.depth == "all")
    if config.depth == "last":
        model.layers[-1].requires_grad_(True)
    if config.depth == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        inject_adapter_in_model(LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=LORA_TARGETS), model.layers)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _changes(model: SE2Transformer, before: Mapping[str, Tensor]) -> Delta:
    """Return what was added to each weight, by its name in a plain transformer; what was not changed is left out."""
    now = {name.replace(".base_layer", ""): value.detach() for name, value in model.named_parameters()}
    changes = {name: now[name] - value for name, value in before.items()}
    for name, layer in model.named_modules():
        if hasattr(layer, "get_delta_weight"):  # of peft
            changes[f"{name}.weight"] = layer.get_delta_weight("default").detach()
    return {name: change.cpu().numpy() for name, change in changes.items() if bool((change != 0).any())}
