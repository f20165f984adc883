"""The pair bias of published checkpoints, and the pairs that their distance matrices hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stofm.batch import SubSliceBatch
from stofm.distance_bias import DistanceBias
from stofm.gaussian_mlp import gaussian_mlp
from stofm.geometry import Pairs, where
from stofm.sparse_bias import SparseBias

NO_DISTANCE = 100.0  # stands in a published matrix where no distance is known, and is read like one
LEAST_STD = 1e-5


class PublishedPairBias(DistanceBias):
    """K Gaussians of an affine map of the distance, then two layers; 0 where the distance is 0.

    Parameters
    ----------
    n_heads : int
        H.
    n_radial : int
        K.

    Notes
    -----
    Source: SToFM, after Uni-Mol. Names and shapes of the parameters are those of the published files.
    """

    farthest = NO_DISTANCE

    def __init__(self, n_heads: int, n_radial: int) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.means, self.stds = nn.Embedding(1, n_radial), nn.Embedding(1, n_radial)
        self.proj = nn.Sequential(nn.Linear(n_radial, n_radial), nn.ReLU(), nn.Linear(n_radial, n_heads))
        for kernels in (self.means, self.stds):
            nn.init.uniform_(kernels.weight, 0, 3)

    def formula(self, distance: Tensor) -> Tensor:
        """Map (E,) distances, in hundredths of the slice's diagonal, to (E, H) biases."""
        std = self.stds.weight[0].abs() + LEAST_STD
        return gaussian_mlp(self.linear(distance[:, None])[:, 0], self.means.weight[0], std, *self.proj.parameters())

    def of_distance(self, distance: Tensor) -> Tensor:
        """The formula, but 0 at distance 0, which `<cls>` has to all tokens."""
        return super().of_distance(distance).masked_fill((distance == 0)[:, None], 0.0)

    def forward(self, batch: SubSliceBatch, pairs: Pairs) -> SparseBias:
        """Return the bias of the batch: a value per pair, that of `NO_DISTANCE` for two tokens apart, 0 for a token with itself."""
        apart = self.of_distance(pairs.distance_um.new_full((1,), NO_DISTANCE))[0]
        return SparseBias(pairs, self.of_distance(pairs.distance_um), apart, torch.zeros_like(apart), batch.is_padding)


def published_pairs(distances: Tensor, is_padding: Tensor) -> Pairs:
    """Take the pairs of two tokens from published distance matrices, each once.

    Parameters
    ----------
    distances : (B, N, N) float32
        `NO_DISTANCE` where none is known, 0 between `<cls>` and all tokens.
    is_padding : (B, N) bool

    Returns
    -------
    Pairs
        Its distances are in the unit of the matrix, not in micrometres. Where rounding made the matrix differ from its transpose, both
        ways are pairs of their own, for gradients of the narrowest Gaussians feel it.
    """
    is_pair = distances != NO_DISTANCE
    if is_padding.any():
        is_pair &= ~(is_padding[:, :, None] | is_padding[:, None, :])
    is_mutual = distances == distances.mT
    pairs = [(is_pair & is_mutual).triu_(1)] if is_mutual.all() else [(is_pair & is_mutual).triu_(1), is_pair & ~is_mutual]
    places = [where(mask) for mask in pairs]
    b, i, j = (torch.cat(axis) for axis in zip(*places, strict=True))
    return Pairs(b, i, j, distances[b, i, j], len(places[0][0]))
