"""A pretrained model as a folder: weights as safetensors, everything else as JSON, every file named with its hash.

```text
stofm.json              kind of folder
model.json              format, sizes, sha256 of every other file, what it was trained on
cell_encoder/           cell_bert/ and cell_proj.safetensors
se2_transformer.safetensors
gene_vocab.csv, gene_tables.json, scales.json, README.md     handed in by pretraining: how a slice must be read, model card
```
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from stofm.cell_encoder import CellEncoder
from stofm.config import parse_config
from stofm.durable import MARKER, read_json, replacing, require_folder, tree_sha256, write_json
from stofm.errors import CheckpointError
from stofm.se2_transformer import SE2Transformer, SE2TransformerConfig

MODEL_KIND = "stofm-model/1"
WEIGHTS = "se2_transformer.safetensors"


@dataclass(frozen=True, eq=False)
class Model:
    """A pretrained model, in evaluation mode.

    Attributes
    ----------
    weights_sha256 : str
        Names the weights: equal for equal files, whatever the folder is called.
    """

    folder: Path
    cell_encoder: CellEncoder
    se2_transformer: SE2Transformer
    weights_sha256: str
    meta: dict[str, Any]


def save_model(
    folder: Path, encoder: CellEncoder, transformer: SE2Transformer, *, texts: Mapping[str, str], trained_on: Mapping[str, object]
) -> None:
    """Write a model folder, whole or not at all; `texts` are further files by name."""
    with replacing(folder) as aside:
        aside.mkdir()
        encoder.save(aside / "cell_encoder")
        save_file({name: value.detach().cpu().contiguous() for name, value in transformer.state_dict().items()}, aside / WEIGHTS)
        for name, text in texts.items():
            (aside / name).write_text(text, encoding="utf-8")
        sizes = transformer.config.model_dump(mode="json")
        meta = {"format": MODEL_KIND, "se2_transformer": sizes, "files": tree_sha256(aside), "trained_on": dict(trained_on)}
        write_json(aside / "model.json", meta)
        write_json(aside / MARKER, {"kind": MODEL_KIND})


def load_model(folder: Path) -> Model:
    """Load a model folder after checking every file against its hash.

    Raises
    ------
    ConfigError
        If `folder` is no model folder.
    CheckpointError
        If a file is missing, changed or does not fit the sizes stated.
    """
    require_folder(folder, MODEL_KIND, made_by="stofm train CONFIG")
    meta = read_json(folder / "model.json")
    files = tree_sha256(folder)
    changed = [name for name, sha256 in meta["files"].items() if files.get(name) != sha256]
    if changed:
        raise CheckpointError(f"model {folder}: {changed[0]} is missing or changed; expected the files that training wrote. Copy the folder again.")
    transformer = SE2Transformer(parse_config(SE2TransformerConfig, meta["se2_transformer"], where=f"model {folder}"))
    load_weights(transformer, folder / WEIGHTS)
    encoder = CellEncoder.from_folder(folder / "cell_encoder")
    weights = {name: sha256 for name, sha256 in meta["files"].items() if name.endswith(".safetensors")}
    sha256 = hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()
    return Model(folder, encoder.eval(), transformer.eval(), sha256, meta)


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a safetensors file into a module; `CheckpointError` if it is damaged or of another shape."""
    try:
        module.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {' '.join(str(error).split())[:200]}; expected the weights of this model. Use a matching pair.") from error
