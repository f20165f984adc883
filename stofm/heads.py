"""Heads of the objectives: what a cell's representation says of its embedding and surroundings, a pair's of its distance."""

from __future__ import annotations

from torch import Tensor, nn

from stofm.fields import EMBEDDING_DIM


class CellHead(nn.Module):
    """Predict the embedding of a cell from its representation (masked cell modeling)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(EMBEDDING_DIM, EMBEDDING_DIM), nn.ReLU(), nn.Linear(EMBEDDING_DIM, EMBEDDING_DIM))

    def forward(self, cell_repr: Tensor) -> Tensor:
        """Map (..., 256) representations to (..., 256) unit vectors."""
        return nn.functional.normalize(self.layers(cell_repr), dim=-1)


class PairHead(nn.Module):
    """Predict the distance of a pair from its representation (pairwise distance recovery)."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(n_heads, n_heads), nn.ReLU(), nn.Linear(n_heads, 1))

    def forward(self, pair_repr: Tensor) -> Tensor:
        """Map (..., H) pair representations to (...,) distances in units of the local spacing."""
        return self.layers(pair_repr).squeeze(-1)


class ContextHead(nn.Module):
    """Read what lies around a cell off its representation; linear, so that any other linear head can read it too."""

    def __init__(self, n_contexts: int) -> None:
        super().__init__()
        self.layer = nn.Linear(EMBEDDING_DIM, EMBEDDING_DIM * n_contexts)
        nn.init.zeros_(self.layer.weight)  # at first every cell is said to lie in the middle of the slice
        nn.init.zeros_(self.layer.bias)

    def forward(self, cell_repr: Tensor) -> Tensor:
        """Map (C, 256) representations to (C, n_contexts, 256) differences from the middle of the slice, in units of their spread."""
        return self.layer(cell_repr).unflatten(-1, (-1, EMBEDDING_DIM)) / EMBEDDING_DIM**0.5
