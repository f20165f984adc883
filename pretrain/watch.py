"""Whether embeddings still tell cells apart: their effective rank and spread, and an alarm where both are gone."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_RANK, LEAST_SPREAD = 2.0, 1e-3  # below these all cells lie on a line, or in a point


def spread_of(embeddings: Tensor) -> dict[str, float]:
    """Measure (n, D) embeddings.

    Returns
    -------
    {"effective_rank", "spread"}
        The exponential of the entropy of the variances along principal axes (Roy and Vetterli 2007), at most D and at most n - 1; and the share
        of the mean square of the embeddings that is variance, 0 where all are the same.
    """
    values = embeddings.double()
    centred = values - values.mean(0)
    variances = (centred.mT @ centred if len(values) > values.shape[1] else centred @ centred.mT).cpu()
    total, size = float(centred.square().sum()), float(values.square().sum())
    if total <= 1e-12 * max(size, 1e-12):
        return {"effective_rank": 1.0, "spread": 0.0}
    shares = torch.linalg.eigvalsh(variances).clamp(min=1e-30) / total
    return {"effective_rank": float((-(shares * shares.log()).sum()).exp()), "spread": total / size}


def alarm_of(measured: dict[str, float]) -> str | None:
    """Say that embeddings have collapsed, or None."""
    if measured["effective_rank"] >= LEAST_RANK and measured["spread"] >= LEAST_SPREAD:
        return None
    return (
        f"embeddings collapse: effective rank {measured['effective_rank']:.2f}, spread {measured['spread']:.1e}; expected at least {LEAST_RANK:g} "
        f"and {LEAST_SPREAD:g}. Stop, and lower `optim.lr` or the weight of the objective that fell to 0."
    )
