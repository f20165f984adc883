"""What a cell and its surroundings are: its own embedding, the mean of its neighbours and, at several reaches, of the tissue's virtual cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stofm.batch import SubSliceBatch
from stofm.geometry import Pairs


def context_of_cells(batch: SubSliceBatch, pairs: Pairs, reach_um: Sequence[float]) -> Tensor:
    """Return the surroundings of every real cell, made of what the model sees and of nothing that is hidden from it.

    Parameters
    ----------
    batch : SubSliceBatch
    pairs : Pairs
        From `find_pairs`.
    reach_um : R numbers, micrometres
        At this distance a virtual cell counts 1/e of what it would right at the cell.

    Returns
    -------
    (C, 1 + R, 256) float
        Of the C real cells of the batch in order: the mean embedding of the visible neighbours, then R means of the virtual cells
        weighted by ``exp(-d / reach)``; each as its difference from the middle of the slice (the mean of its virtual cells, or of the
        visible cells where it has none), in units of such differences: of the neighbours' means for neighbours, of the
        virtual cells for the rest. So every part of a tissue is measured alike, and little is asked of a tissue that is the same everywhere.
        Zero where there is no mean.
    """
    neighbors, has_neighbors = _mean_neighbor(batch, pairs)
    of_sub_slices = []
    for b, (is_cell, is_virtual) in enumerate(zip(batch.is_cell, batch.is_virtual, strict=True)):
        embeddings, coords_um, middle = batch.cell_embeddings[b], batch.coords_um[b], _middle(batch, b)
        around = torch.where(has_neighbors[b, is_cell], neighbors[b, is_cell] - middle, 0.0)
        virtual = embeddings[is_virtual] - middle  # (V, 256)
        unit = _root_mean_square(virtual)
        distance = torch.cdist(coords_um[is_cell], coords_um[is_virtual], compute_mode="donot_use_mm_for_euclid_dist")  # (C, V)
        contexts = [around / _root_mean_square(around), *((-distance / reach).softmax(1) @ virtual / unit for reach in reach_um)]
        of_sub_slices.append(torch.stack(contexts, dim=1))
    return torch.cat(of_sub_slices)


def own_of_cells(batch: SubSliceBatch) -> Tensor:
    """Return the embeddings of the visible cells of a batch in order, (number visible, 256), each as its difference from the middle of the slice.

    Units and middle are those of `context_of_cells`.
    """
    is_visible = batch.is_cell & ~batch.is_masked
    own = [embeddings[visible] - _middle(batch, b) for b, (embeddings, visible) in enumerate(zip(batch.cell_embeddings, is_visible, strict=True))]
    return torch.cat([one / _root_mean_square(one) for one in own])


def _middle(batch: SubSliceBatch, b: int) -> Tensor:
    """Mean of a sub-slice's virtual cells, (256,), or of its visible cells where it has none."""
    embeddings, is_virtual = batch.cell_embeddings[b], batch.is_virtual[b]
    return embeddings[is_virtual if is_virtual.any() else batch.is_cell[b] & ~batch.is_masked[b]].mean(0).nan_to_num()


def _root_mean_square(vectors: Tensor) -> Tensor:
    """Typical length of (n, D) vectors, 0-d; 1 if all are zero."""
    size = (vectors**2).sum() / max(1, len(vectors))
    return torch.where(size > 1e-12, size, 1.0).sqrt()


def _mean_neighbor(batch: SubSliceBatch, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Mean embedding of the visible neighbours of every token, (B, N, 256), and whether it has any, (B, N, 1)."""
    N, width = batch.cell_embeddings.shape[1:]
    is_visible = (batch.is_cell & ~batch.is_masked).flatten()
    b, i, j = pairs.entries()
    cell, neighbor = b * N + i, b * N + j
    is_wanted = is_visible[neighbor] & batch.is_cell.flatten()[cell]
    cell, neighbor = cell[is_wanted], neighbor[is_wanted]
    embeddings = batch.cell_embeddings.reshape(-1, width)
    sums = torch.zeros_like(embeddings).index_add_(0, cell, embeddings[neighbor])
    number = torch.bincount(cell, minlength=len(embeddings))[:, None]
    return (sums / number.clamp(min=1)).view(-1, N, width), (number > 0).view(-1, N, 1)
