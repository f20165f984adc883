"""Where an SE(2) transformer that is trained from scratch starts: telling what a cell is, what its neighbours are, and what the tissue is around it.

A randomly started transformer mixes all of this anew, and loses more of it than minutes of training bring back. So it starts as what its
own parts can compute of means: heads that attend by distance alone, each handing on some axes to dimensions of its own.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from corpus.loader import Record
from corpus.slice import FloatArray
from corpus.view import View
from pretrain.context import context_of_cells, own_of_cells
from pretrain.data import generator, torch_seed
from pretrain.objectives import SE2Objectives
from pretrain.shared_axes import shared_axes
from stofm.batch import collate
from stofm.fields import CELL_EMBEDDINGS, EMBEDDING_DIM
from stofm.heads import ContextHead
from stofm.pair_bias import REACH_UM, PairBias
from stofm.se2_transformer import SE2Layer, SE2Transformer

MOST_RECORDS, RECORDS_TO_FIT = 200, 32
OWN_AXES, TISSUE_AXES = 60, 4  # of every sub-slice: those that cells and virtual cells are told on; neighbours' means on those they are alike on
LEAST_LENGTH = 1e-2  # of an axis beside the first
RIDGE = 1e-2  # of the mean square of a dimension
N_NEAR, MOST_RINGS = 32, 2  # dimensions of the neighbours' mean, and of the means of means that further layers make
N_TISSUE = 8  # dimensions that each head hands on that reads virtual cells
NEIGHBORS_ALONE = -8.0  # bias of whatever else the head of neighbours could attend to


@torch.no_grad()
def start_from_surroundings(transformer: SE2Transformer, view: View, *, seed: int) -> None:
    """Set an untrained transformer to tell of every cell, each in dimensions of its own, what can be read off its surroundings by means.

    - The cell's own embedding, on most of its axes.
    - Its neighbours' mean, on the axes along which neighbours are alike, which head 0 of the first layer finds; and the mean of that, by the
      second layer's.
    - Leading axes of the virtual cells around it, at the reaches of the heads that read them.

    Attention goes by the pair bias alone until keys are learned; what other heads and the feed-forward layers add starts at zero.

    Parameters
    ----------
    view : View
        Of the corpus as the encoder embeds it; the axes are found on some of its sub-slices.
    """
    middle, of_records, of_neighbors = _sample(transformer, view, seed)
    if not of_records:
        return
    layers: list[SE2Layer] = list(transformer.layers)  # type: ignore[arg-type]
    of_head = EMBEDDING_DIM // transformer.config.n_heads
    n_near, n_tissue = min(N_NEAR, of_head), min(N_TISSUE, of_head)
    n_rings, readers = min(MOST_RINGS, len(layers)), range(1, transformer.config.n_heads, 2)
    n_own = EMBEDDING_DIM - n_rings * n_near - len(readers) * n_tissue

    own = nearest_basis(_shared(of_records, n_own, of=EMBEDDING_DIM))
    read = transformer.embedding_layer
    read.weight.zero_()[:n_own] = own.mT
    read.bias.zero_()[:n_own] = -(middle @ own) * EMBEDDING_DIM**0.5
    for layer in layers:
        for linear in (layer.self_attn.k_proj, layer.self_attn.out_proj, layer.fc2):
            linear.weight.zero_()
            linear.bias.zero_()
    near = _shared([axes @ own.numpy() for axes in of_neighbors], n_near, of=n_own)
    far = _shared([axes[:TISSUE_AXES] @ own.numpy() for axes in of_records], n_tissue, of=n_own)
    place = n_own
    for number in range(n_rings):
        _hand_on(layers[number], 0, torch.eye(n_near) if number else near, place, start=place - n_near if number else 0)
        place += n_near
    for head in readers:
        _hand_on(layers[0], head, far, place, start=0)
        place += n_tissue
    _attend_to_neighbors(transformer.pair_bias)  # type: ignore[arg-type]


@torch.no_grad()
def fit_heads(objectives: SE2Objectives, view: View, *, seed: int) -> None:
    """Let the linear heads read off the transformer, as it starts, what they ask of it: by least squares on some sub-slices.

    Heads that know nothing pull at what the transformer tells for as long as they learn to read it.
    """
    transformer, targets = objectives.transformer, dict[ContextHead, list[Tensor]]()
    wanted = [head for head in (objectives.context_head, objectives.own_head) if head is not None]
    if not wanted or not len(view):
        return
    told: list[Tensor] = []
    transformer.train()  # with dropout, or heads would lean on what it takes away
    torch.manual_seed(torch_seed(seed, 2))
    for record in _some_records(view, seed, RECORDS_TO_FIT):
        batch = collate([view.read(record)])
        pairs = transformer.find_pairs(batch)
        told.append(transformer(batch, pairs).cell_repr[batch.is_cell])
        if objectives.context_head is not None and objectives.context_um is not None:
            targets.setdefault(objectives.context_head, []).append(context_of_cells(batch, pairs, objectives.context_um).flatten(1))
        if objectives.own_head is not None:
            targets.setdefault(objectives.own_head, []).append(own_of_cells(batch))
    x = torch.cat(told).double()
    x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # (n, 257)
    squares = x.mT @ x
    squares.diagonal().add_(RIDGE * squares.diagonal().mean())
    for head in wanted:
        solved = torch.linalg.solve(squares, x.mT @ torch.cat(targets[head]).double()) * EMBEDDING_DIM**0.5
        head.layer.weight.copy_(solved[:-1].mT)
        head.layer.bias.copy_(solved[-1])


def nearest_basis(axes: Tensor) -> Tensor:
    """Turn axes, (D, k), within what they span, to lie as near as can be to the first k dimensions.

    So dimensions of an embedding stay what they are. Along principal axes they would all be stretched alike by a head that
    scales its features, and those of little spread are mostly noise.
    """
    left, _, right = torch.linalg.svd(axes[: axes.shape[1]])
    return axes @ (left @ right).mT


def alike_axes(x: FloatArray, neighbor_mean: csr_matrix, rng: np.random.Generator) -> FloatArray:
    """Axes along which neighbours are alike: means of neighbours differ more along them than means of cells that lie together by chance.

    Parameters
    ----------
    x : (n, p) float64
        Of each cell; the mean of all is 0.
    neighbor_mean : (n, n)
        Takes the mean over the neighbours of each cell, which it is not one of.
    rng : Generator
        Puts the cells at other places, once.

    Returns
    -------
    (k, p) float64
        Orthogonal, the leading one first, as long as the fourth roots of what their means vary by beyond chance. As many as vary by more than any
        axis does among cells at other places (parallel analysis, Horn 1965), none where nothing does.
    """
    by_chance = x.T @ x * (neighbor_mean.multiply(neighbor_mean).sum() / len(x))

    def beyond_chance(x: FloatArray) -> tuple[FloatArray, FloatArray]:
        means = neighbor_mean @ x
        means -= means.mean(axis=0)
        return np.linalg.eigh(means.T @ means - by_chance)  # ascending

    values, axes = beyond_chance(x)
    is_alike = values > max(0.0, beyond_chance(rng.permutation(x))[0][-1])
    values, axes = values[is_alike][::-1], axes[:, is_alike][:, ::-1]
    return (values / values.max(initial=0.0))[:, None] ** 0.25 * axes.T


def _neighbor_mean(transformer: SE2Transformer, arrays: Record) -> csr_matrix:
    """(n, n) mean over the cells that each cell of a record is paired with; a row of zeros where there are none."""
    batch = collate([arrays])
    is_cell, (_, i, j) = batch.is_cell[0], transformer.find_pairs(batch).entries()
    ends = tuple(one[is_cell[i] & is_cell[j]].numpy() for one in (i, j))
    n = int(is_cell.sum())
    return csr_matrix((1 / np.bincount(ends[0], minlength=n)[ends[0]], ends), shape=(n, n))


def _shared(of_records: list[FloatArray], n_dims: int, *, of: int) -> Tensor:
    """(of, n_dims) float32, the last ones 0 where cells vary in fewer (`shared_axes`)."""
    some = [axes for axes in of_records if len(axes)]
    found = shared_axes(some, n_dims) if some else np.empty((of, 0))
    return torch.from_numpy(np.pad(found, ((0, 0), (0, n_dims - found.shape[1])))).float()


def _hand_on(layer: SE2Layer, head: int, axes: Tensor, place: int, *, start: int) -> None:
    """Let a head hand on axes, (n, k), of the dimensions from `start` on, to those from `place` on, in what it adds."""
    n, k = axes.shape
    attention = layer.self_attn
    first = head * (EMBEDDING_DIM // attention.n_heads)
    attention.v_proj.weight[first : first + k] = 0
    attention.v_proj.weight[first : first + k, start : start + n] = axes.mT
    attention.out_proj.weight[place : place + k, first : first + k] = torch.eye(k)


def _attend_to_neighbors(bias: PairBias) -> None:
    """Let biases be those of the reaches alone, and head 0 attend to all neighbours alike and to nothing else."""
    for parameter in bias.mlp[-1].parameters():
        parameter.zero_()
    bias.log_reach_um[0] = math.log(REACH_UM[1])
    for constant in (bias.apart, bias.itself, bias.with_virtual):
        constant[0] = NEIGHBORS_ALONE


def _sample(transformer: SE2Transformer, view: View, seed: int) -> tuple[Tensor, list[FloatArray], list[FloatArray]]:
    """Middle, (256,), of the embeddings of some sub-slices; of each that is not all alike its principal axes, (k, 256), and its `alike_axes`.

    Principal axes are as long as the roots of their spreads. Rounding, which differs between numbers of processes, does not decide on axes that
    hardly anything lies along.
    """
    means, of_records, of_neighbors = [np.zeros(EMBEDDING_DIM)], [], []
    for record in _some_records(view, seed, MOST_RECORDS):
        arrays = view.read(record)
        embeddings: FloatArray = arrays[CELL_EMBEDDINGS].astype(np.float64)
        means.append(embeddings.mean(axis=0))
        embeddings -= means[-1]
        _, lengths, axes = np.linalg.svd(embeddings, full_matrices=False)
        if lengths[0] > 0:
            lengths, axes = lengths[:OWN_AXES] / lengths[0], axes[:OWN_AXES]
            of_records.append((np.sqrt(lengths)[:, None] * axes)[lengths > LEAST_LENGTH])
            of_neighbors.append(alike_axes(embeddings @ axes.T, _neighbor_mean(transformer, arrays), generator(seed, 3, record)) @ axes)
    return torch.from_numpy(np.mean(means[1:] or means, axis=0)).float(), of_records, of_neighbors


def _some_records(view: View, seed: int, n: int) -> list[int]:
    return sorted(generator(seed, 2).permutation(len(view))[:n].tolist())
