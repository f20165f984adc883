"""The losses of a model that is not being trained: one number an objective, a mean over all targets of some units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pretrain.stages import Stage

MOST_UNITS = 200  # of a corpus: a few hundred chunks or sub-slices settle a mean


def mean_losses(stage: Stage, *, device: torch.device, n_units: int = MOST_UNITS) -> dict[str, float]:
    """Return {objective: loss} of a stage's model in evaluation mode, over its first units, masked as in their first epoch."""
    stage.model.to(device)
    sums: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    with evaluating(stage.model):
        for unit in range(min(stage.n_units, n_units)):
            batch = stage.micro_batch([(0, unit)])
            losses = stage.model(batch.to(device))
            sums.update({name: float(value) for name, value in losses.items()})
            counts.update({name: batch.counts()[name] for name in losses})
    return {name: sums[name] / counts[name] for name in sums if counts[name]}


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients while the block runs; each model is then left as it was."""
    were_training = [model.training for model in models]
    try:
        with torch.no_grad():
            for model in models:
                model.eval()
            yield
    finally:
        for model, was_training in zip(models, were_training, strict=True):
            model.train(was_training)
