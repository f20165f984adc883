"""Low-rank adapters on every linear layer of a model (LoRA, Hu et al. 2021), by peft: its layers stay as they are, small additions are trained."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from stofm.durable import replacing

if TYPE_CHECKING:
    from peft import PeftModel


def add_adapters(body: nn.Module, *, rank: int, seed: int) -> PeftModel:
    """Put an adapter of this rank beside every linear layer of `body`, in place; all else of it is frozen.

    An adapter starts as nothing: until it is trained, the model computes what it did. Returns what
    `save_adapters` takes.
    """
    from peft import LoraConfig, get_peft_model

    linear = [name for name, module in body.named_modules() if type(module) is nn.Linear]
    torch.manual_seed(seed)
    return get_peft_model(body, LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=linear))


def save_adapters(adapted: PeftModel, folder: Path) -> None:
    """Write the adapters alone, as peft reads them (`PeftModel.from_pretrained(body, folder)`), whole or not at all."""
    with replacing(folder) as aside, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft wonders about embeddings and a base model on the hub
        adapted.save_pretrained(str(aside))
        (aside / "README.md").unlink(missing_ok=True)  # a form to fill in


def merge_adapters(body: nn.Module) -> None:
    """Add the adapters to the layers beside which they are, in place, and remove them: the body has its own layers again.

    peft's own `merge_and_unload` asks for a configuration of transformers, which the SE(2) transformer has not.
    """
    from peft.tuners.lora import LoraLayer

    for name, layer in list(body.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()  # of its linear kind
            body.set_submodule(name, layer.get_base_layer())
