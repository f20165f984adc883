"""Pair bias: what the distance of two cells adds to their attention, one number per head."""

from __future__ import annotations

import math

import torch
from e3nn.math import soft_one_hot_linspace
from torch import Tensor, nn

from stofm.batch import SubSliceBatch
from stofm.distance_bias import DistanceBias
from stofm.geometry import Pairs
from stofm.sparse_bias import SparseBias

FARTHEST_UM = 20_000.0  # distances beyond two centimetres, wider than any slide, look alike
REACH_UM = (40.0, 2_000.0)  # shortest and longest at the start
WITH_VIRTUAL = (-4.0, 4.0)  # at the start: what a pair with a virtual cell adds in heads that read cells, and in those that read virtual cells


def radial_basis(distance_um: Tensor, *, length_um: float, n_radial: int) -> Tensor:
    """Map (E,) distances up to `FARTHEST_UM` to (E, n_radial): ``log(1 + d / length_um)`` through Gaussians (e3nn)."""
    u = torch.log1p(distance_um / length_um)
    return soft_one_hot_linspace(u, 0.0, math.log1p(FARTHEST_UM / length_um), n_radial, basis="gaussian", cutoff=False)


class PairBias(DistanceBias):
    """A learned function of distance, evaluated on the pairs that exist; three learned constants for all other entries.

    Distances enter as ``log(1 + d / length_um)`` through K Gaussians (e3nn's radial basis), so that 10 um between
    neighbours and 5 mm between ends of a tissue are both resolved, and a distance means the same in every slice.
    Every head has a reach, beyond which a pair counts less and less. Heads start in twos, one reading cells and one reading
    virtual cells, with reaches from a cell's neighbours to a whole tissue; so what lies near is told from what lies far, in
    the sub-slice and in the tissue, from the first step.
    All tokens see `<cls>`, where a model has one, with a constant of its own.
    Pairs without a neighbour relation get a constant per head, which starts between 0 (a head that looks everywhere)
    and -8 (one that sees neighbours only); so does a cell's pair with itself. Distance 0 between two cells is a distance.

    Parameters
    ----------
    n_heads : int
        H.
    n_radial : int
        K.
    length_um : float
        Micrometres; the resolution is finest below it.
    has_cls : bool
    """

    farthest = FARTHEST_UM

    def __init__(self, n_heads: int, n_radial: int, length_um: float, *, has_cls: bool = False) -> None:
        super().__init__()
        self.n_radial, self.length_um = n_radial, length_um
        self.mlp = nn.Sequential(nn.Linear(n_radial, n_radial), nn.GELU(), nn.Linear(n_radial, n_heads))
        n_twos = (n_heads + 1) // 2
        self.log_reach_um = nn.Parameter(torch.linspace(math.log(REACH_UM[0]), math.log(REACH_UM[1]), n_twos).repeat_interleave(2)[:n_heads])
        self.apart = nn.Parameter(torch.linspace(-8.0, 0.0, n_heads))
        self.itself = nn.Parameter(torch.zeros(n_heads))
        self.with_virtual = nn.Parameter(torch.tensor(WITH_VIRTUAL).repeat(n_twos)[:n_heads])
        self.with_cls = nn.Parameter(torch.zeros(n_heads)) if has_cls else None

    def formula(self, distance_um: Tensor) -> Tensor:
        """Map (E,) distances in micrometres to (E, H) biases."""
        distance_um = distance_um.clamp(max=FARTHEST_UM)
        basis = radial_basis(distance_um, length_um=self.length_um, n_radial=self.n_radial)
        return self.mlp(basis) - distance_um[:, None] / self.log_reach_um.exp()

    def forward(self, batch: SubSliceBatch, pairs: Pairs) -> SparseBias:
        """Return the bias of the batch: a value per pair, and the two constants."""
        has_virtual = batch.is_virtual[pairs.batch, pairs.first] | batch.is_virtual[pairs.batch, pairs.second]
        of_pair = self.of_distance(pairs.distance_um) + has_virtual[:, None] * self.with_virtual  # (E, H)
        if self.with_cls is not None:
            assert batch.is_cls is not None
            of_pair = torch.where(batch.is_cls[pairs.batch, pairs.second, None], self.with_cls, of_pair)
        return SparseBias(pairs, of_pair, self.apart, self.itself, batch.is_padding)
