"""AdamW with decay groups, and the learning rate of every step."""

from __future__ import annotations

import math

import torch
from torch import nn

from pretrain.config import OptimConfig

LAST_SHARE = 0.1  # of the rate, at the end of every schedule


def make_optimizer(model: nn.Module, config: OptimConfig, *, lr_shares: dict[str, float] | None = None) -> torch.optim.AdamW:
    """AdamW over what of a model is trained: matrices decay; biases, norms and single vectors do not. Fused on GPUs.

    Parameters
    ----------
    lr_shares : {submodule: share}
        Parts whose rate is this share of the schedule's; see `set_learning_rate`.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            share = next((share for part, share in (lr_shares or {}).items() if name.startswith(f"{part}.")), 1.0)
            groups.setdefault((parameter.ndim > 1, share), []).append(parameter)
    is_on_gpu = all(parameter.is_cuda for parameters in groups.values() for parameter in parameters)
    return torch.optim.AdamW(
        [{"params": parameters, "weight_decay": config.weight_decay * is_matrix, "lr_share": share}
         for (is_matrix, share), parameters in sorted(groups.items(), key=lambda group: group[0], reverse=True)],
        lr=config.lr, fused=is_on_gpu,
    )  # fmt: skip


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every group to its share of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_share", 1.0)


def learning_rate(config: OptimConfig, step: int, n_steps: int) -> float:
    """Linear warm-up, then down to a tenth: along a cosine, or in a straight line over the last steps (wsd)."""
    n_warmup = max(1, round(config.warmup_share * n_steps))
    if step < n_warmup:
        return config.lr * (step + 1) / n_warmup
    if config.schedule == "wsd":
        n_decay = max(1, round(config.decay_share * n_steps))
        return config.lr * (1 - (1 - LAST_SHARE) * max(0, step + 1 - (n_steps - n_decay)) / n_decay)
    done = (step - n_warmup) / max(1, n_steps - n_warmup)
    return config.lr * (LAST_SHARE + (1 - LAST_SHARE) * (0.5 + 0.5 * math.cos(math.pi * done)))
