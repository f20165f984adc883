"""Gene scale: transformers' BERT over a cell's ranked genes and their levels, and a 256-d unit vector read at `<cls>`."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from stofm.config import FrozenModel
from stofm.errors import CheckpointError, located, one_line
from stofm.fields import EMBEDDING_DIM, PAD_TOKEN
from stofm.first_layer import FirstLayer, first_layer
from stofm.gene_tokens import LEVEL_SHIFT, N_LEVELS, GeneTokens
from stofm.packed import can_pack, pack
from stofm.weights import load_weights, read_weights

if TYPE_CHECKING:
    from transformers import BertConfig, BertModel

BERT_FOLDER, HEAD_STEM, HEAD_ENDS = "cell_bert", "cell_proj", (".safetensors", ".bin")  # the published names
TOKENS_PER_BATCH = {"cpu": 2_048, "gpu": 65_536}


class CellEncoderConfig(FrozenModel):
    """Sizes of a cell encoder that is trained from scratch."""

    n_layers: int = Field(6, ge=1)
    width: int = Field(256, ge=1)
    n_heads: int = Field(4, ge=1)
    ffn_dim: int = Field(512, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1, description="Early in training, noise of 0.1 drowns what tells cells apart; masks are noise enough.")


class CellEncoder(nn.Module):
    """Gene tokens of cells in, unit vectors out.

    What BERT calls the type of a token is the level of its gene. Encoders that were made without levels, as published ones, have two types and
    read ranks alone.

    Attributes
    ----------
    left_out : tuple of str
        Weights of the folder that it was read from which have no place in it, as a pooler's.
    first_layer : FirstLayer or None
        Of a copy for inference: stands for the start of tokens and the first layer.
    """

    first_layer: FirstLayer | None = None

    def __init__(self, bert_config: BertConfig) -> None:
        from transformers import BertModel

        super().__init__()
        self.left_out: tuple[str, ...] = ()
        self.bert = BertModel(bert_config, add_pooling_layer=False)
        self.proj = nn.Linear(bert_config.hidden_size, EMBEDDING_DIM)

    @classmethod
    def from_scratch(cls, config: CellEncoderConfig, *, n_tokens: int, max_tokens: int) -> CellEncoder:
        """Make an untrained encoder for a vocabulary of `n_tokens` ids and cells of at most `max_tokens` genes and `<cls>`."""
        from transformers import BertConfig

        return cls(
            BertConfig(
                vocab_size=n_tokens,
                hidden_size=config.width,
                num_hidden_layers=config.n_layers,
                num_attention_heads=config.n_heads,
                intermediate_size=config.ffn_dim,
                max_position_embeddings=max_tokens + 1,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.dropout,
                pad_token_id=PAD_TOKEN,
                type_vocab_size=N_LEVELS,
            )
        )

    @classmethod
    def from_folder(cls, folder: Path) -> CellEncoder:
        """Load ``cell_bert/`` (a BertModel folder) and ``cell_proj.safetensors`` or the published ``cell_proj.bin``.

        Sizes are read from the files; nothing pickled is executed.

        Raises
        ------
        CheckpointError
            If a file is missing, damaged or of another shape.
        """
        with located(f"cell encoder {folder}"):
            head = next((folder / f"{HEAD_STEM}{end}" for end in HEAD_ENDS if (folder / f"{HEAD_STEM}{end}").is_file()), None)
            if head is None or not (folder / BERT_FOLDER).is_dir():
                raise CheckpointError(f"found no {BERT_FOLDER}/ or no {HEAD_STEM}; expected {BERT_FOLDER}/ and {HEAD_STEM}.safetensors or .bin. "
                                      "Name a folder that holds both.")  # fmt: skip
            if not list((folder / BERT_FOLDER).glob("*.safetensors")):
                for pickled in (folder / BERT_FOLDER).glob("pytorch_model*.bin"):
                    read_weights(pickled)  # says what is wrong with it; transformers would advise to run it
            bert, info = _read_bert(folder / BERT_FOLDER)
            no_numbers = [name for name, value in bert.state_dict().items() if not torch.isfinite(value).all()]
            unfit = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]])) or no_numbers
            if unfit:
                raise CheckpointError(f"{BERT_FOLDER}/: {len(unfit)} weights missing, misshapen or not finite {unfit[:3]}; "
                                      "expected those of its config.json. Use the original files.")  # fmt: skip
            encoder = cls(bert.config)
            encoder.bert, encoder.left_out = bert, tuple(sorted(info["unexpected_keys"]))
            load_weights(encoder.proj, head)
        return encoder

    def save(self, folder: Path) -> None:
        """Write the encoder as `from_folder` reads it."""
        folder.mkdir(parents=True, exist_ok=True)
        self.bert.save_pretrained(folder / BERT_FOLDER)
        save_file({name: value.detach().cpu() for name, value in self.proj.state_dict().items()}, folder / f"{HEAD_STEM}.safetensors")

    @property
    def n_tokens(self) -> int:
        """Ids of the vocabulary that the encoder was made for."""
        return int(self.bert.config.vocab_size)

    @property
    def max_tokens(self) -> int:
        """Genes of a cell that the encoder reads at most, beside `<cls>`."""
        return int(self.bert.config.max_position_embeddings) - 1

    @property
    def reads_levels(self) -> bool:
        """Whether it is told how much of a cell's molecules are of a gene, beside its rank."""
        return int(self.bert.config.type_vocab_size) == N_LEVELS

    def hidden(self, tokens: Tensor) -> Tensor:
        """Map (B, T) int64 tokens with their levels (`GeneTokens.padded`) to (B, T, width) states."""
        genes = gene_of(tokens)
        return self.bert(input_ids=genes, token_type_ids=self._levels(tokens), attention_mask=(genes != PAD_TOKEN).long()).last_hidden_state

    def at_cls(self, tokens: Tensor) -> Tensor:
        """Map tokens to the (B, width) states of `<cls>` alone, as `hidden` has them.

        Of the last layer hardly anything is computed for the other tokens, and nothing that grows with the square of a cell's genes.
        """
        from transformers.masking_utils import create_bidirectional_mask

        genes, levels, bert = gene_of(tokens), self._levels(tokens), self.bert
        is_token = genes != PAD_TOKEN
        mask = create_bidirectional_mask(config=bert.config, inputs_embeds=is_token[..., None].float(), attention_mask=is_token.long())
        *others, last = list[Any](bert.encoder.layer)
        if self.first_layer is None:
            states = bert.embeddings(input_ids=genes, token_type_ids=levels)
        else:
            states, others = self.first_layer(genes, levels, mask), others[1:]
        for layer in others:
            states = layer(states, mask)
        cls, mixed = states[:, :1], _read_by_first(last.attention.self, states, is_token)
        found: Tensor = last.feed_forward_chunk(last.attention.output(mixed, cls))
        return found[:, 0]

    def embed(self, at_cls: Tensor) -> Tensor:
        """Map (B, width) states of `<cls>` to (B, 256) unit vectors."""
        return nn.functional.normalize(self.proj(at_cls), dim=-1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, T) int64 tokens with their levels (`GeneTokens.padded`) to (B, 256) unit vectors."""
        return self.embed(self.at_cls(tokens))

    def for_inference(self, tokens: GeneTokens, *, cls_token: int) -> CellEncoder:
        """Return a copy in evaluation mode that embeds these cells as this encoder does, faster where it can; it has no gradients.

        Later changes of weights are not seen.
        """
        if not can_pack(self):
            return self
        copy = deepcopy(self, {id(weight): weight for weight in self.parameters()}).eval()  # weights are shared
        copy.first_layer = first_layer(copy.bert, tokens, cls_token=cls_token)
        pack(copy.bert)
        return copy

    def _levels(self, tokens: Tensor) -> Tensor | None:
        return tokens >> LEVEL_SHIFT if self.reads_levels else None


def _read_by_first(attention: Any, states: Tensor, is_token: Tensor) -> Tensor:
    """What the first token of each cell gathers from all: (B, T, width) states through BERT's self-attention to (B, 1, width).

    A query times the key of a state is the query times the key's weights, times the state; and a mean of values is the value of a mean. So
    neither a key nor a value is made for each token: the heads ask the states themselves. Adapted weights (peft) are no plain matrices, and
    dropout falls on single values; both make the keys and values.
    """
    size, dropout = attention.attention_head_size, attention.dropout.p if attention.training else 0.0
    query = attention.query(states[:, :1]).unflatten(-1, (-1, size)).transpose(1, 2)  # (B, H, 1, size)
    if dropout or not all(isinstance(linear, nn.Linear) for linear in (attention.key, attention.value)):
        key, value = (linear(states).unflatten(-1, (-1, size)).transpose(1, 2) for linear in (attention.key, attention.value))
        read = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=is_token[:, None, None], dropout_p=dropout)
        return read.transpose(1, 2).flatten(2)
    of_key, of_value = (linear.weight.unflatten(0, (-1, size)) for linear in (attention.key, attention.value))  # each (H, size, width)
    query = query[:, :, 0] * size**-0.5
    asked = torch.einsum("bhd,hdw->bhw", query, of_key)
    same = (query * attention.key.bias.unflatten(0, (-1, size))).sum(-1, keepdim=True)  # of all tokens, for weights without gradient stop DDP
    scores = (asked @ states.mT + same).masked_fill(~is_token[:, None], -torch.inf)  # (B, H, T)
    read = torch.einsum("bhw,hdw->bhd", scores.softmax(-1) @ states, of_value)
    return read.flatten(1)[:, None] + attention.value.bias


def gene_of(tokens: Tensor) -> Tensor:
    """Return tokens without their levels."""
    return tokens & ((1 << LEVEL_SHIFT) - 1)


@torch.inference_mode()
def embed_cells(
    encoder: CellEncoder, tokens: GeneTokens, *, cls_token: int, tokens_per_batch: int | None = None, into: Any = None
) -> NDArray[np.float32]:
    """Embed any number of cells, short with short, so that hardly anything is padding.

    Neither the order of the cells nor `tokens_per_batch` changes an embedding beyond rounding. By default a batch fits the processor's
    cache, or fills a GPU.

    Returns
    -------
    (n, 256) float32, unit length
        In the order of the cells; `into`, an array or what is indexed like one, if it is given.
    """
    device = next(encoder.parameters()).device
    encoder = encoder.for_inference(tokens, cls_token=cls_token)
    budget = tokens_per_batch or TOKENS_PER_BATCH["cpu" if device.type == "cpu" else "gpu"]
    embeddings = np.empty((len(tokens.lengths), EMBEDDING_DIM), np.float32) if into is None else into
    for cells in batches_by_length(tokens.lengths + 1, budget):
        embeddings[cells] = encoder(torch.from_numpy(tokens.padded(cells, cls_token=cls_token)).to(device)).float().cpu().numpy()
    return embeddings


def batches_by_length(lengths: NDArray[np.integer], budget: int) -> Iterator[NDArray[np.integer]]:
    """Deal cells of these lengths, (n,), the shortest first, into batches of at most `budget` tokens with their padding, or of one cell."""
    by_length = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(by_length):
        longest = lengths[by_length[start : start + max(1, budget // int(lengths[by_length[start]]))]]
        n_cells = max(1, int((longest * np.arange(1, len(longest) + 1) <= budget).sum()))
        yield by_length[start : start + n_cells]
        start += n_cells


def _read_bert(folder: Path) -> tuple[BertModel, dict[str, Any]]:
    """Read a BertModel folder; the second value names what was missing, misshapen or of no use in it."""
    from transformers import BertModel

    try:
        read: Any = BertModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True, output_loading_info=True)
    except (OSError, RuntimeError, ValueError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{BERT_FOLDER}/: {one_line(error)[:200]}; expected a BertModel folder. Copy it again.") from error
    return read
