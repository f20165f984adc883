"""A pretrained model as a folder: weights as safetensors, everything else as JSON, every file named with its hash.

```text
stofm.json              kind of folder
model.json              format, sizes and scheme, sha256 of every other file, what it was trained on, licence if one is stated
cell_encoder/           cell_bert/ and cell_proj.safetensors
se2_transformer.safetensors
gene_vocab.csv, gene_tables.json, scales.json, README.md     handed in by the caller: how a slice must be read, model card
```
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

from pydantic import Field
from safetensors.torch import save_file

from stofm.cell_encoder import CellEncoder
from stofm.config import FrozenModel, parse_config
from stofm.durable import MARKER, read_json, replacing, require_folder, tree_sha256, write_json
from stofm.errors import CheckpointError
from stofm.hub import local_folder, push_folder
from stofm.se2_transformer import SE2Transformer, SE2TransformerConfig
from stofm.weights import load_weights

MODEL_KIND: Final = "stofm-model/1"
WEIGHTS = "se2_transformer.safetensors"
OWN_FILES = (WEIGHTS, "cell_encoder/")  # what `save_model` makes itself; the other files are texts of the caller
ENCODER_START: Final = "cell_encoder_start"  # beside a run's model: the cell encoder before its adaptation


class ModelMeta(FrozenModel):
    """What ``model.json`` holds."""

    format: Literal["stofm-model/1"]
    se2_transformer: SE2TransformerConfig
    files: dict[str, str] = Field(description="sha256 of every other file, by its path in the folder.")
    trained_on: dict[str, Any] = Field(description="Corpus, vocabulary and input files; of an imported model the files that it was made from.")
    licence: str | None = Field(None, description="Terms of the weights, if they are known.")


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
    meta: ModelMeta

    @classmethod
    def from_pretrained(cls, where: str | Path) -> Model:
        """Load a model from a folder, or from the Hugging Face hub by its name; as `load_model`."""
        return load_model(where)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model, with the weights that it has now, as a model folder."""
        texts = {name: (self.folder / name).read_text(encoding="utf-8") for name in self.meta.files if not name.startswith(OWN_FILES)}
        trained_on, licence = self.meta.trained_on, self.meta.licence
        save_model(Path(folder), self.cell_encoder, self.se2_transformer, texts=texts, trained_on=trained_on, licence=licence)

    def push_to_hub(self, repo: str, *, private: bool = False) -> str:
        """Put the model, as `save_pretrained` writes it, on the Hugging Face hub as ``owner/name``; returns the address of the commit."""
        with TemporaryDirectory() as scratch:
            self.save_pretrained(Path(scratch) / "model")
            return push_folder(Path(scratch) / "model", repo, private=private, message=f"SToFM model {self.weights_sha256[:12]}")


def save_model(
    folder: Path,
    encoder: CellEncoder,
    transformer: SE2Transformer,
    *,
    texts: Mapping[str, str],
    trained_on: Mapping[str, object],
    licence: str | None = None,
) -> None:
    """Write a model folder, whole or not at all; `texts` are further files by name."""
    with replacing(folder) as aside:
        aside.mkdir()
        encoder.save(aside / "cell_encoder")
        save_file({name: value.detach().cpu().contiguous() for name, value in transformer.state_dict().items()}, aside / WEIGHTS)
        for name, text in texts.items():
            (aside / name).write_text(text, encoding="utf-8")
        files = tree_sha256(aside)
        meta = ModelMeta(format=MODEL_KIND, se2_transformer=transformer.config, files=files, trained_on=dict(trained_on), licence=licence)
        write_json(aside / "model.json", meta.model_dump(mode="json"))
        write_json(aside / MARKER, {"kind": MODEL_KIND})


def load_model(where: str | Path) -> Model:
    """Load a model, from a folder or by its name on the Hugging Face hub (`stofm.hub.local_folder`), after checking every file against its hash.

    Raises
    ------
    ConfigError
        If `where` is no model folder, or its ``model.json`` says something that this version does not know.
    CheckpointError
        If a file is missing, changed or does not fit the sizes stated.
    """
    folder = local_folder(where)
    require_folder(folder, MODEL_KIND, made_by="stofm train CONFIG")
    meta = parse_config(ModelMeta, read_json(folder / "model.json"), where=f"model {folder}: model.json")
    files = tree_sha256(folder)
    changed = [name for name, sha256 in meta.files.items() if files.get(name) != sha256]
    if changed:
        raise CheckpointError(f"model {folder}: {changed[0]} is missing or changed; expected the files as they were written. Copy the folder again.")
    transformer = SE2Transformer(meta.se2_transformer)
    load_weights(transformer, folder / WEIGHTS)
    encoder = CellEncoder.from_folder(folder / "cell_encoder")
    weights = {name: sha256 for name, sha256 in meta.files.items() if name.endswith(".safetensors")}
    sha256 = hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()
    return Model(folder, encoder.eval(), transformer.eval(), sha256, meta)
