"""Head of the denoising objective: from where it is seen, which way and how far a moved cell belongs."""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor, nn

from stofm.directional import FEATURES, SCALARS, Convolution, Directions, Edges
from stofm.fields import EMBEDDING_DIM

VECTORS = o3.Irreps("16x1o")


class DisplacementHead(nn.Module):
    """Predict a vector for every cell; turning the tissue turns the vectors.

    Neighbours say by their representations, and by where they lie, which way a cell belongs; its own representation weighs
    what they say.
    """

    def __init__(self, *, n_radial: int, n_neighbors: int) -> None:
        super().__init__()
        self.to_scalars = nn.Linear(EMBEDDING_DIM, SCALARS.dim)
        self.convolution = Convolution(SCALARS + FEATURES, VECTORS, n_radial=n_radial, n_neighbors=n_neighbors)
        self.weigh = o3.FullyConnectedTensorProduct(VECTORS, SCALARS, "1o")

    def forward(self, cell_repr: Tensor, directions: Directions) -> Tensor:
        """Map (B, N, 256) representations to (B, N, 2) displacements, in units of the sub-slice's spacing."""
        with torch.autocast(cell_repr.device.type, enabled=False):
            vectors = self.of_edges(cell_repr.flatten(0, 1).to(directions.features.dtype), directions.features, directions.edges)
        return vectors[:, :2].view(*cell_repr.shape[:2], 2)  # z is 0: mirrored at its plane, the tissue is the same

    def of_edges(self, cell_repr: Tensor, features: Tensor, edges: Edges) -> Tensor:
        """Map representations (M, 256) and features (M, `FEATURES`) to vectors (M, 3)."""
        scalars = nn.functional.silu(self.to_scalars(cell_repr))  # (M, 32)
        vectors = self.convolution(torch.cat([scalars, features], dim=1), edges)
        return self.weigh(vectors, scalars)
