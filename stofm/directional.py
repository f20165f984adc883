"""Directional geometry: where a cell's neighbours lie relative to one another, read by tensor products that turn with the tissue.

The tissue is the plane z = 0 of space, and every feature belongs to a representation of O(3): scalars (0e), vectors (1o) and
order along an axis (2e). A turn or a mirror of the tissue is an element of O(3) and moves features as it moves the cells;
the scalars that the transformer gets stay as they are. Used with ``geometry: directional`` alone: e3nn's tensor products take seconds to import.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from e3nn import o3
from e3nn.nn import FullyConnectedNet, Gate
from torch import Tensor, nn

from stofm.batch import SubSliceBatch
from stofm.fields import EMBEDDING_DIM
from stofm.geometry import Pairs
from stofm.pair_bias import FARTHEST_UM, radial_basis

HARMONICS = o3.Irreps("0e + 1o + 2e")  # of a direction
SCALARS = o3.Irreps("32x0e")  # of a cell, before it saw its neighbours
ORIENTED = o3.Irreps("8x1o + 8x2e")  # of its neighbourhood
FEATURES = SCALARS + ORIENTED
INVARIANTS = o3.Irreps("64x0e")  # products of features that no turn changes
NO_DIRECTION_UM = 0.1  # far below a cell's size: cells this close have hardly a direction from one to the other, coincident ones none
N_LIKENESSES, HIDDEN_RADIAL = 4, 32


@dataclass(frozen=True, eq=False)
class Edges:
    """Pairs of real cells in both directions; cells of the whole batch in one row, ``b * N + i``.

    Attributes
    ----------
    sender, receiver : (E,) int64
    harmonics : (E, 9) float
        Spherical harmonics of the direction from receiver to sender.
    radial : (E, K) float
        Radial basis of their distance.
    """

    sender: Tensor
    receiver: Tensor
    harmonics: Tensor
    radial: Tensor


def edges_between(sender: Tensor, receiver: Tensor, offset_um: Tensor, *, length_um: float, n_radial: int) -> Edges:
    """Describe edges by the offset (E, 3) from receiver to sender, in micrometres.

    Harmonics are those of the unit vector times a factor that falls to 0 with the distance (as its power l), so nothing jumps
    where two cells meet. Distances enter as in the pair bias: ``log(1 + d / length_um)`` through K Gaussians.
    """
    squared = offset_um.square().sum(dim=1, keepdim=True)  # (E, 1)
    direction = offset_um / (squared + NO_DIRECTION_UM**2).sqrt()
    harmonics = o3.spherical_harmonics(HARMONICS, direction, normalize=False, normalization="component")
    basis = radial_basis(squared[:, 0].sqrt().clamp(max=FARTHEST_UM), length_um=length_um, n_radial=n_radial)
    return Edges(sender, receiver, harmonics, basis * n_radial**0.5)  # of unit variance, as e3nn's layers expect


def edges_of_cells(batch: SubSliceBatch, pairs: Pairs, *, length_um: float, n_radial: int) -> Edges:
    """Edges between the real cells among `pairs`; virtual cells have no neighbourhood."""
    is_cell, n = batch.is_cell, batch.is_cell.shape[1]
    b, i, j = pairs.entries()
    is_kept = is_cell[b, i] & is_cell[b, j]
    receiver, sender = ((b * n + cell)[is_kept] for cell in (i, j))
    coords = nn.functional.pad(batch.coords_um.reshape(-1, 2), (0, 1))  # (B * N, 3)
    return edges_between(sender, receiver, coords[sender] - coords[receiver], length_um=length_um, n_radial=n_radial)


class Surroundings(nn.Module):
    """Sum over neighbours of the harmonics of where they lie, weighted by distance and by how alike both cells are.

    Where cells of a kind lie in a line, the order of this sum along an axis is large and the same all along the line.
    """

    def __init__(self, irreps_out: o3.Irreps, *, n_radial: int, n_neighbors: int) -> None:
        super().__init__()
        self.weigh = o3.Linear(HARMONICS, irreps_out, shared_weights=False, internal_weights=False)
        self.weights = FullyConnectedNet([n_radial, HIDDEN_RADIAL, self.weigh.weight_numel], nn.functional.silu)
        self.scale = n_neighbors**-0.5

    def forward(self, scalars: Tensor, edges: Edges) -> Tensor:
        """Map scalars (M, S) of all cells to (M, irreps_out)."""
        alike = (scalars[edges.sender] * scalars[edges.receiver]).unflatten(1, (N_LIKENESSES, -1)).sum(dim=-1)  # (E, N_LIKENESSES)
        weights = self.weights(edges.radial)  # (E, W)
        weights = weights * alike.repeat(1, weights.shape[1] // N_LIKENESSES)
        return _sum_at(edges.receiver, self.weigh(edges.harmonics, weights), len(scalars)) * self.scale


class Convolution(nn.Module):
    """Sum over neighbours of tensor products of their features with the harmonics of where they lie, weighted by distance.

    Notes
    -----
    Source: the convolution of tensor field networks (Thomas et al. 2018) as e3nn gives its parts. Every path of the product keeps
    the channels of its input, weights depend on the distance, and a linear layer mixes channels after the sum.
    """

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, *, n_radial: int, n_neighbors: int) -> None:
        super().__init__()
        paths = [
            (i, j, mul, out)
            for i, (mul, one) in enumerate(irreps_in)
            for j, (_, other) in enumerate(HARMONICS)
            for out in one * other
            if out in irreps_out
        ]
        irreps_of_paths, place, _ = o3.Irreps([(mul, out) for _, _, mul, out in paths]).sort()
        instructions = [(i, j, place[number], "uvu", True) for number, (i, j, _, _) in enumerate(paths)]
        self.product = o3.TensorProduct(irreps_in, HARMONICS, irreps_of_paths, instructions, shared_weights=False, internal_weights=False)
        self.weights = FullyConnectedNet([n_radial, HIDDEN_RADIAL, self.product.weight_numel], nn.functional.silu)
        self.of_neighbors, self.of_itself = o3.Linear(irreps_of_paths.simplify(), irreps_out), o3.Linear(irreps_in, irreps_out)
        self.scale = n_neighbors**-0.5

    def forward(self, features: Tensor, edges: Edges) -> Tensor:
        """Map features (M, irreps_in) of all cells to (M, irreps_out)."""
        messages = self.product(features[edges.sender], edges.harmonics, self.weights(edges.radial))  # (E, ...)
        return self.of_itself(features) + self.of_neighbors(_sum_at(edges.receiver, messages, len(features)) * self.scale)


def _sum_at(receiver: Tensor, messages: Tensor, n_cells: int) -> Tensor:
    """Sum (E, ...) messages at the cells that receive them, (n_cells, ...)."""
    return messages.new_zeros(n_cells, messages.shape[1]).index_add(0, receiver, messages)


@dataclass(frozen=True, eq=False)
class Directions:
    """What the directional block knows of every cell, for a head that predicts vectors.

    Attributes
    ----------
    features : (B * N, `FEATURES`) float
    edges : Edges
    """

    features: Tensor
    edges: Edges


class DirectionalBlock(nn.Module):
    """Message passing between neighbours whose features turn with the tissue; scalars out, added to the cells' tokens.

    The last layer starts at zero, so the block changes nothing until it is trained.
    """

    def __init__(self, *, n_radial: int, length_um: float, n_neighbors: int) -> None:
        super().__init__()
        self.n_radial, self.length_um = n_radial, length_um
        self.to_scalars = nn.Linear(EMBEDDING_DIM, SCALARS.dim)
        gates = o3.Irreps([(ORIENTED.num_irreps, "0e")])
        self.gate = Gate(SCALARS, [nn.functional.silu], gates, [torch.sigmoid], ORIENTED)
        self.surroundings = Surroundings(ORIENTED, n_radial=n_radial, n_neighbors=n_neighbors)
        self.convolution = Convolution(FEATURES, self.gate.irreps_in, n_radial=n_radial, n_neighbors=n_neighbors)
        self.invariants = o3.FullyConnectedTensorProduct(FEATURES, FEATURES, INVARIANTS)
        self.to_tokens = nn.Linear(SCALARS.dim + INVARIANTS.dim, EMBEDDING_DIM)
        nn.init.zeros_(self.to_tokens.weight)
        nn.init.zeros_(self.to_tokens.bias)

    def forward(self, cells: Tensor, batch: SubSliceBatch, pairs: Pairs) -> tuple[Tensor, Directions]:
        """Read the neighbourhoods of real cells.

        Parameters
        ----------
        cells : (B, N, 256) float
            Tokens of the cells; what is masked in them stays hidden.

        Returns
        -------
        (B, N, 256) float, update of the tokens, 0 for virtual cells and padding ; Directions
        """
        with torch.autocast(cells.device.type, enabled=False):  # a turn must change nothing also where the rest is rounded to bf16
            edges = edges_of_cells(batch, pairs, length_um=self.length_um, n_radial=self.n_radial)
            update, features = self.of_edges(cells.flatten(0, 1).to(edges.radial.dtype), edges)
        return update.view_as(cells) * batch.is_cell[..., None], Directions(features, edges)

    def of_edges(self, cells: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        """Map tokens (M, 256) to their update (M, 256) and to features (M, `FEATURES`)."""
        scalars = self.to_scalars(cells)
        features = torch.cat([scalars, self.surroundings(scalars, edges)], dim=1)
        features = self.gate(self.convolution(features, edges))
        invariants = torch.cat([features[:, : SCALARS.dim], self.invariants(features, features)], dim=1)
        return self.to_tokens(invariants), features
