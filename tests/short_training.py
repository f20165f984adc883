"""A few steps on one batch: enough to see whether an objective can be learned."""

from __future__ import annotations

from typing import Any

import torch

from pretrain.stages import Stage


def losses_of(objective: str, stage: Stage, batch: Any, *, n_steps: int, optimizer: type[torch.optim.Optimizer]) -> list[float]:
    """Train on one objective alone at a rate of 1e-3; returns its loss, a mean over targets, before every step."""
    steps = optimizer(stage.model.parameters(), lr=1e-3)
    losses = []
    for _ in range(n_steps):
        loss = stage.model(batch)[objective] / batch.counts()[objective]
        loss.backward()
        steps.step()
        steps.zero_grad()
        losses.append(float(loss.detach()))
    return losses
