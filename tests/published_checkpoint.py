"""A published checkpoint as its publishers lay it out, of random weights, and what the published script makes of a slice with it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from published_model import N_HEADS, N_LAYERS, Weights, published_model
from safetensors.torch import save_file

from corpus.gene_vocab import GeneVocab
from corpus.published_scheme import extract_published, published_distances
from stofm.cell_encoder import CellEncoder, CellEncoderConfig
from stofm.published import published_name
from stofm.se2_transformer import SE2Transformer, SE2TransformerConfig

N_RADIAL, FFN_DIM = 16, 64
SIZES = {"num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS, "gaussian_hidden_dim": N_RADIAL, "ffn_embedding_dim": FFN_DIM,
         "embedding_dim": 256, "input_dim": 256}  # fmt: skip


def random_weights(seed: int = 0) -> Weights:
    """Weights under their published names with `model.` in front, away from their start, so that distances matter and no constant is zero."""
    torch.manual_seed(seed)
    config = SE2TransformerConfig(scheme="published", n_layers=N_LAYERS, n_heads=N_HEADS, n_radial=N_RADIAL, ffn_dim=FFN_DIM)
    weights = {f"model.{published_name(name)}": value.clone() for name, value in SE2Transformer(config).state_dict().items()}
    return far_reaching({name: value + 0.05 * torch.randn_like(value) for name, value in weights.items()})


def far_reaching(weights: Weights, *, times: float = 5.0) -> Weights:
    """The same with a pair bias that tells distances from 0 to 100 apart, and so many times as large."""
    of_heads = "model.gaussian.proj.2.weight"
    return weights | {"model.gaussian.linear.weight": torch.full((1, 1), 0.03), of_heads: times * weights[of_heads]}


class Code:
    """What a malicious pickle holds: a call that is made when it is loaded."""

    def __init__(self, sign: Path) -> None:
        self.sign = str(sign)

    def __reduce__(self):
        return os.mkdir, (self.sign,)


@dataclass(frozen=True)
class Checkpoint:
    """Folder of a published checkpoint with the tables of its vocabulary."""

    folder: Path

    def words(self) -> list[object]:
        """What a person types after `stofm model import`, but for `--out`."""
        names = {"--se2": "se2transformer.pth", "--config": "config.json", "--cell-encoder": "cell_encoder", "--vocabulary": "tokens.csv",
                 "--medians": "medians.csv"}  # fmt: skip
        return [word for option, name in names.items() for word in (option, self.folder / name)]


def write_checkpoint(folder: Path, vocab: GeneVocab, weights: Weights, *, max_tokens: int = 70) -> Checkpoint:
    """Write a checkpoint whose small cell encoder reads this vocabulary, at most `max_tokens` genes of a cell."""
    torch.manual_seed(1)
    sizes = CellEncoderConfig(n_layers=2, width=32, n_heads=2, ffn_dim=32)
    encoder = without_levels(CellEncoder.from_scratch(sizes, n_tokens=vocab.n_tokens, max_tokens=max_tokens))
    encoder.save(folder / "cell_encoder")
    (folder / "cell_encoder" / "cell_proj.safetensors").unlink()
    torch.save(encoder.proj.state_dict(), folder / "cell_encoder" / "cell_proj.bin")
    torch.save({name.removeprefix("model."): value for name, value in weights.items()}, folder / "se2transformer.pth")
    (folder / "config.json").write_text(json.dumps({**SIZES, "dropout": 0.1, "model_type": "any", "pad_type_id": 3}))
    tokens = {"<pad>": 0, "<mask>": 1} | {gene: number + 2 for number, gene in enumerate(vocab.gene_ids.tolist())}
    for name, values in (("tokens", tokens), ("medians", dict(zip(vocab.gene_ids.tolist(), vocab.medians.tolist(), strict=True)))):
        (folder / f"{name}.csv").write_text("gene,value\n" + "".join(f"{gene},{value!r}\n" for gene, value in values.items()))
    return Checkpoint(folder)


def without_levels(encoder: CellEncoder) -> CellEncoder:
    """Return an encoder of the same sizes, at random, that is told ranks alone: published ones, and ours from before there were levels."""
    from transformers import BertConfig

    return CellEncoder(BertConfig(**{**encoder.bert.config.to_dict(), "type_vocab_size": 2}))


def edit(path: Path, change: Callable[[Weights], object]) -> None:
    """Change the tensors of a file that `torch.save` or safetensors wrote."""
    weights = torch.load(path, weights_only=True)
    change(weights)
    torch.save(weights, path)


def as_safetensors(path: Path) -> Path:
    """The same weights beside it as safetensors."""
    other = path.with_suffix(".safetensors")
    save_file(torch.load(path, weights_only=True), other)
    return other


def published_tokens(counts: np.ndarray, vocab: GeneVocab, *, max_tokens: int) -> list[list[int]]:
    """The published tokeniser on counts, (n, G) in the order of the vocabulary, equal values in that order: `<cls>`, then genes."""
    cls_token, cells = len(vocab.gene_ids) + 2, []
    for cell in counts:
        genes = np.flatnonzero(cell)
        ranked = genes[np.argsort(-(cell[genes] / cell.sum() * 10_000 / vocab.medians[genes]), kind="stable")]
        cells.append([cls_token, *(ranked + 2).tolist()][: max_tokens + 1])
    return cells


@torch.no_grad()
def published_embeddings(tokens: list[list[int]], coords: np.ndarray, encoder: CellEncoder, weights: Weights) -> np.ndarray:
    """What the published script writes, (n, 256): cells one by one, sub-slices one by one, dense distances through the plain formula."""
    cells = torch.cat([encoder(torch.tensor([cell])) for cell in tokens])
    scales = extract_published(coords, cells.numpy())
    virtual = torch.from_numpy(scales.virtual.embeddings)
    out = np.zeros((len(tokens), 256), np.float32)
    for members in scales.sub_slices:
        distances = torch.from_numpy(published_distances(scales.places[members], scales.virtual.coords_um))
        embeddings = torch.cat([torch.zeros(1, 256), virtual, cells[members]])
        types = torch.cat([torch.tensor([1]), torch.full((len(virtual),), 2), torch.zeros(len(members), dtype=torch.long)])
        last_hidden, _ = published_model(weights, embeddings[None], distances[None], types[None])
        out[members] = last_hidden[0, 1 + len(virtual) :].numpy()
    return out
