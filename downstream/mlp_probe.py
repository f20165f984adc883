"""The multilayer perceptron among the probes: one hidden layer, stopped early by cells that were held out."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import nn

from corpus.slice import BoolArray, FloatArray, IntArray

LEAST_BATCH, MOST_BATCHES, LR, MAX_EPOCHS, MAX_STEPS, PATIENCE = 512, 100, 2e-3, 60, 6000, 6
Layers = list[tuple[FloatArray, FloatArray]]


def fit_mlp(x: FloatArray, y: IntArray, is_held: BoolArray, *, hidden: int, l2: float, class_weights: FloatArray, seed: int) -> Layers:
    """Fit by AdamW until the loss of the held-out cells stops falling; the weights at its lowest are returned.

    Parameters
    ----------
    x : (n, F) float32, scaled
    y : (n,) int64
    is_held : (n,) bool
        Cells that stop the fit and are not learned from.
    class_weights : (C,) float
        Weight of a cell of each class, in the loss of both.

    Returns
    -------
    [(weights (F, hidden), bias), (weights (hidden, C), bias)] float32
    """
    draws = torch.Generator().manual_seed(seed)
    sizes = [x.shape[1], hidden, len(class_weights)]
    weights = [torch.randn(a, b, generator=draws).mul_((2 / a) ** 0.5).requires_grad_() for a, b in pairwise(sizes)]
    biases = [torch.zeros(size, requires_grad=True) for size in sizes[1:]]
    optimizer = torch.optim.AdamW([{"params": weights, "weight_decay": l2}, {"params": biases, "weight_decay": 0.0}], lr=LR, fused=True)
    cost = nn.CrossEntropyLoss(torch.as_tensor(class_weights, dtype=torch.float32))

    def scores(cells: torch.Tensor) -> torch.Tensor:
        return torch.relu(cells @ weights[0] + biases[0]) @ weights[1] + biases[1]

    features, classes, held = torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(is_held)
    learned = (~held).nonzero().squeeze(1)
    size = max(LEAST_BATCH, -(-len(learned) // MOST_BATCHES))
    n_epochs = max(1, min(MAX_EPOCHS, MAX_STEPS * size // len(learned)))
    best, lowest, since = [*weights, *biases], np.inf, 0
    for _ in range(n_epochs):
        for batch in learned[torch.randperm(len(learned), generator=draws)].split(size):
            optimizer.zero_grad()
            cost(scores(features[batch]), classes[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            now = float(cost(scores(features[held]), classes[held]))
        since += 1
        if now < lowest:
            lowest, since, best = now, 0, [one.detach().clone() for one in [*weights, *biases]]
        if since == PATIENCE:
            break
    arrays = [one.detach().numpy() for one in best]
    return [(arrays[0], arrays[2]), (arrays[1], arrays[3])]
