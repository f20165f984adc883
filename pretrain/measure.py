"""The losses of a model that is not being trained: one number an objective, a mean over all targets of some units."""

from __future__ import annotations

from collections import Counter

import torch

from pretrain.stages import Stage

MOST_UNITS = 200  # of a corpus: a few hundred chunks or sub-slices settle a mean


@torch.no_grad()
def mean_losses(stage: Stage, *, device: torch.device) -> dict[str, float]:
    """Return {objective: loss} of a stage's model in evaluation mode, over its first units, masked as in their first epoch."""
    was_training = stage.model.training
    stage.model.to(device).eval()
    sums: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for unit in range(min(stage.n_units, MOST_UNITS)):
        batch = stage.micro_batch([(0, unit)])
        losses = stage.model(batch.to(device))
        sums.update({name: float(value) for name, value in losses.items()})
        counts.update({name: batch.counts()[name] for name in losses})
    stage.model.train(was_training)
    return {name: sums[name] / counts[name] for name in sums if counts[name]}
