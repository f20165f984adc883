"""The published model and its two losses, formula by formula: slow, dense and plain, so that faster code has something to equal.

Weights are named as in the published file, with the prefix ``model.`` and the two heads. The formulas use nothing of `stofm`;
`our_model` and `our_input` hand the same weights and input to it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.objectives import MaskedBatch, SE2Objectives
from stofm.batch import SubSliceBatch
from stofm.geometry import Pairs
from stofm.published import PUBLISHED_NAMES
from stofm.published_pair_bias import published_pairs
from stofm.se2_transformer import SE2Transformer, SE2TransformerConfig

N_LAYERS, N_HEADS = 4, 8
PADDING_TYPE = 3
NOT_A_TARGET = -100.0
Weights = dict[str, Tensor]


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def layer_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def pair_bias(weights: Weights, distances: Tensor) -> Tensor:
    """(B, N, N) -> (B, H, N, N): K Gaussians of an affine map of the distance, then two layers; 0 where the distance is 0."""
    x = linear(weights, "model.gaussian.linear", distances[..., None])  # (B, N, N, 1)
    std = weights["model.gaussian.stds.weight"].abs() + 1e-5  # (1, K)
    z = (x - weights["model.gaussian.means.weight"]) / std  # (B, N, N, K)
    gaussians = torch.exp(-0.5 * z**2) / (std * math.sqrt(2 * math.pi))
    hidden = torch.relu(linear(weights, "model.gaussian.proj.0", gaussians))
    bias = linear(weights, "model.gaussian.proj.2", hidden)  # (B, N, N, H)
    return bias.masked_fill((distances == 0)[..., None], 0.0).permute(0, 3, 1, 2)


def attend(weights: Weights, name: str, x: Tensor, pair_state: Tensor, is_padding: Tensor) -> tuple[Tensor, Tensor]:
    """Return the update (B, N, D) and the pair state (B, H, N, N) that the next layer gets, 0 in columns of padding."""
    q, k, v = (linear(weights, f"{name}.{one}_proj", x).unflatten(-1, (N_HEADS, -1)).transpose(1, 2) for one in "qkv")  # (B, H, N, D/H)
    of_padding = is_padding[:, None, None, :]
    scores = (q / math.sqrt(q.shape[-1])) @ k.mT + pair_state  # (B, H, N, N)
    mixed = scores.masked_fill(of_padding, -torch.inf).softmax(-1) @ v
    return linear(weights, f"{name}.out_proj", mixed.transpose(1, 2).flatten(2)), scores.masked_fill(of_padding, 0.0)


def published_model(weights: Weights, token_embeddings: Tensor, distances: Tensor, token_types: Tensor) -> tuple[Tensor, Tensor]:
    """Read a batch of sub-slices.

    Parameters
    ----------
    token_embeddings : (B, N, 256)
    distances : (B, N, N), 100 where none is known
    token_types : (B, N): 0 cell, 1 CLS, 2 virtual cell, 3 padding

    Returns
    -------
    (B, N, 256) last hidden state ; (B, H, N, N) last pair state
    """
    types = token_types.long()
    x = linear(weights, "model.embedding_layer", token_embeddings) + weights["model.token_type_embeddings.weight"][types]
    pair_state = pair_bias(weights, distances)
    for layer in range(N_LAYERS):
        name = f"model.encoder.layers.{layer}"
        update, pair_state = attend(weights, f"{name}.self_attn", x, pair_state, types == PADDING_TYPE)
        x = layer_norm(weights, f"{name}.self_attn_layer_norm", x + update)
        update = linear(weights, f"{name}.fc2", F.gelu(linear(weights, f"{name}.fc1", x)))
        x = layer_norm(weights, f"{name}.final_layer_norm", x + update)
    return x, pair_state


def published_losses(weights: Weights, last_hidden: Tensor, pair_state: Tensor, labels: Tensor, pair_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Masked cell modeling, one minus the cosine, and pairwise distance recovery, squared error; means over targets, -100 is none."""
    is_target = (labels != NOT_A_TARGET).all(-1)  # (B, N)
    predicted = linear(weights, "lm_head.2", torch.relu(linear(weights, "lm_head.0", last_hidden[is_target])))
    mcm = 1 - F.cosine_similarity(predicted, labels[is_target], dim=-1)
    is_pair = pair_labels != NOT_A_TARGET  # (B, N, N)
    distances = linear(weights, "pair_head.2", torch.relu(linear(weights, "pair_head.0", pair_state.permute(0, 2, 3, 1)[is_pair]))).squeeze(-1)
    return mcm.mean(), F.mse_loss(distances, pair_labels[is_pair])


OUR_NAMES = {f"model.{theirs}": f"transformer.{ours}" for ours, theirs in PUBLISHED_NAMES.items()}
OUR_NAMES |= {"lm_head": "cell_head.layers", "pair_head": "pair_head.layers"}


def our_name(name: str) -> str:
    """The name of a published weight among those of `SE2Objectives`."""
    (start,) = [start for start in OUR_NAMES if name.startswith(f"{start}.")]
    return OUR_NAMES[start] + name.removeprefix(start)


def random_weights(seed: int, *, n_radial: int = 128) -> Weights:
    """Published weights as they start, but that no bias is zero, at which a ReLU has no one gradient."""
    torch.manual_seed(seed)
    config = SE2TransformerConfig(scheme="published", n_layers=N_LAYERS, n_heads=N_HEADS, n_radial=n_radial)
    ours = SE2Objectives(SE2Transformer(config)).state_dict()
    for name, value in ours.items():
        if name.endswith("bias"):
            value += 0.02 * torch.randn_like(value)
    starts = {ours_start: start for start, ours_start in OUR_NAMES.items()}
    of_name = {name: next(start for start in starts if name.startswith(f"{start}.")) for name in ours}
    return {starts[of_name[name]] + name.removeprefix(of_name[name]): value.requires_grad_() for name, value in ours.items()}


def our_model(weights: Weights) -> SE2Objectives:
    """Our transformer and heads under `scheme: published`, with the published weights, in evaluation mode."""
    n_radial = weights["model.gaussian.means.weight"].shape[1]
    config = SE2TransformerConfig(scheme="published", n_layers=N_LAYERS, n_heads=N_HEADS, n_radial=n_radial, dropout=0.0)
    model = SE2Objectives(SE2Transformer(config))
    model.load_state_dict({our_name(name): value.detach() for name, value in weights.items()})
    return model.eval()


def our_input(token_embeddings: Tensor, distances: Tensor, token_types: Tensor) -> tuple[SubSliceBatch, Pairs]:
    """The same batch as ours; a masked token is one whose embedding is -100 throughout."""
    is_padding = token_types == PADDING_TYPE
    is_masked = (token_embeddings == NOT_A_TARGET).all(-1)
    no_coords = torch.zeros_like(token_embeddings[..., :2])
    batch = SubSliceBatch(token_embeddings, no_coords, token_types == 2, is_padding, is_masked, token_types == 1)
    return batch, published_pairs(distances, is_padding)


def our_losses(
    model: SE2Objectives, token_embeddings: Tensor, distances: Tensor, token_types: Tensor, labels: Tensor, pair_labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Both losses as our objectives give them, as means over targets."""
    batch, pairs = our_input(token_embeddings, distances, token_types)
    predicted, wanted = (labels != NOT_A_TARGET).all(-1).nonzero(), (pair_labels != NOT_A_TARGET).nonzero()
    true = MaskedBatch(batch, predicted, labels[tuple(predicted.T)], wanted, pair_labels[tuple(wanted.T)], predicted[:0], token_embeddings[0, :0, :2])
    sums = model(true, pairs)
    return sums["mcm"] / len(predicted), sums["pdr"] / len(wanted)
