"""Published checkpoints of the SE(2) transformer: their weights under our names, their sizes read from the weights themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stofm.config import parse_config
from stofm.durable import read_json
from stofm.errors import CheckpointError, FormatError, located
from stofm.se2_transformer import SE2Transformer, SE2TransformerConfig
from stofm.weights import read_weights

PUBLISHED_NAMES = {
    "embedding_layer": "embedding_layer",
    "type_embedding": "token_type_embeddings",
    "pair_bias": "gaussian",
    "layers": "encoder.layers",
}  # of the parts of our transformer
WRAPPED, HEADS = "model.", ("lm_head.", "pair_head.")  # a checkpoint kept with the heads of its pretraining has both
FORMULA = {"activation_fn": "gelu", "pre_layernorm": False, "encoder_normalize_before": False,
           "norm_type_id": 0, "cls_type_id": 1, "hyper_type_id": 2, "pad_type_id": 3}  # fmt: skip


def read_published(weights: Path, config: Path) -> SE2Transformer:
    """Read a published ``se2transformer.pth`` (or the same tensors as safetensors) and compare it with its ``config.json``.

    Returns
    -------
    SE2Transformer
        Under `scheme: published`, in evaluation mode. Heads of pretraining are left out.

    Raises
    ------
    CheckpointError
        If a file is missing, damaged or asks for code to be executed; if weights are missing, surplus, misshapen or not finite; if
        the configuration states another size or formula.
    """
    found, stated = without_heads(read_weights(weights)), read_stated(config)
    with located(str(weights)):
        sizes = sizes_of(found)
        for key, value in {**sizes, **FORMULA}.items():
            if stated.get(key, value) != value:
                source = "the weights have" if key in sizes else "published checkpoints have"
                raise CheckpointError(f"{config} says {key} {stated[key]!r}, {source} {value!r}; expected the same. Use a matching pair.")
        ours = {"scheme": "published", "n_layers": sizes["num_hidden_layers"], "n_heads": sizes["num_attention_heads"],
                "ffn_dim": sizes["ffn_embedding_dim"], "n_radial": sizes["gaussian_hidden_dim"]}  # fmt: skip
        transformer = SE2Transformer(parse_config(SE2TransformerConfig, ours, where="sizes"))
        require_same_shapes(found, {published_name(name): value for name, value in transformer.state_dict().items()})
    transformer.load_state_dict({name: found[published_name(name)] for name in transformer.state_dict()})
    return transformer.eval()


def read_stated(config: Path) -> dict[str, Any]:
    """Read a ``config.json``; `CheckpointError` if it is missing or damaged."""
    try:
        return read_json(config)
    except FormatError as error:
        raise CheckpointError(f"{config}: found no JSON object; expected the config.json of the checkpoint. Correct the path.") from error


def without_heads(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the transformer's own weights, from a file with or without the heads of pretraining."""
    return {name.removeprefix(WRAPPED): value for name, value in weights.items() if not name.startswith(HEADS)}


def published_name(name: str) -> str:
    """Return the published name of a weight of our transformer."""
    part = next(part for part in PUBLISHED_NAMES if name.startswith(f"{part}."))
    return PUBLISHED_NAMES[part] + name.removeprefix(part)


def sizes_of(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Read the sizes of a transformer from its weights, as its configuration calls them; `CheckpointError` if one cannot be told."""

    def size(name: str, axis: int) -> int:
        if name not in weights or weights[name].ndim != 2:
            raise CheckpointError(f"found no matrix {name!r} among {len(weights)} weights; expected a published SE(2) transformer.")
        return weights[name].shape[axis]

    return {
        "num_hidden_layers": len({name.split(".")[2] for name in weights if name.startswith("encoder.layers.")}),
        "num_attention_heads": size("gaussian.proj.2.weight", 0),
        "gaussian_hidden_dim": size("gaussian.means.weight", 1),
        "ffn_embedding_dim": size("encoder.layers.0.fc1.weight", 0),
        "embedding_dim": size("embedding_layer.weight", 0),
        "input_dim": size("embedding_layer.weight", 1),
    }


def require_same_shapes(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` unless `found` has the names and shapes of `expected`, in finite floating point numbers."""
    faults = {
        "missing": [name for name in expected if name not in found],
        "surplus": [name for name in found if name not in expected],
        "of another shape": [name for name in found if name in expected and found[name].shape != expected[name].shape],
        "not finite": [name for name, value in found.items() if not (value.is_floating_point() and torch.isfinite(value).all())],
    }
    said = [f"{len(names)} {what} ({', '.join(names[:3])})" for what, names in faults.items() if names]
    if said:
        raise CheckpointError(f"found weights {'; '.join(said)}; expected those of a published SE(2) transformer. Use the original file.")
