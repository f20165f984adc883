"""What published checkpoints read: `<cls>`, virtual cells and cells of sub-slices, padded to one size, and the pairs among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stofm.batch import SubSliceBatch
from stofm.fields import EMBEDDING_DIM
from stofm.geometry import Pairs
from stofm.published_pair_bias import published_pairs


@dataclass(frozen=True, eq=False)
class PublishedSubSlice:
    """One sub-slice.

    Attributes
    ----------
    cell_embeddings : (n, 256) float32
    virtual_embeddings : (V, 256) float32
    distances : (1 + V + n, 1 + V + n) float32
        Tokens in the order `<cls>`, virtual cells, cells; 100 where none is known.
    """

    cell_embeddings: NDArray[np.float32]
    virtual_embeddings: NDArray[np.float32]
    distances: NDArray[np.float32]


def collate_published(sub_slices: Sequence[PublishedSubSlice], device: torch.device) -> tuple[SubSliceBatch, Pairs]:
    """Pad sub-slices to the largest of them: tokens in the order of their distances, zeros as the embedding of `<cls>`, no coordinates."""
    B, N = len(sub_slices), max(len(one.distances) for one in sub_slices)
    embeddings, distances = np.zeros((B, N, EMBEDDING_DIM), np.float32), np.zeros((B, N, N), np.float32)
    is_virtual, is_padding, is_cls = np.zeros((B, N), bool), np.ones((B, N), bool), np.zeros((B, N), bool)
    for b, one in enumerate(sub_slices):
        n_tokens, n_virtual = len(one.distances), len(one.virtual_embeddings)
        embeddings[b, 1:n_tokens] = np.concatenate([one.virtual_embeddings, one.cell_embeddings])
        distances[b, :n_tokens, :n_tokens] = one.distances
        is_cls[b, 0], is_virtual[b, 1 : 1 + n_virtual], is_padding[b, :n_tokens] = True, True, False
    nothing = np.zeros_like(is_cls)
    arrays = (embeddings, np.zeros((B, N, 2), np.float32), is_virtual, is_padding, nothing, is_cls)
    batch = SubSliceBatch(*map(torch.from_numpy, arrays)).to(device)
    return batch, published_pairs(torch.from_numpy(distances).to(device), batch.is_padding)
