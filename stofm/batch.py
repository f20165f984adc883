"""What the SE(2) transformer reads: sub-slices padded to one size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from stofm.errors import DataError
from stofm.fields import CELL_EMBEDDINGS, COORDS_UM, EMBEDDING_DIM, VIRTUAL_COORDS_UM, VIRTUAL_EMBEDDINGS


@dataclass(frozen=True, eq=False)
class SubSliceBatch:
    """B sub-slices of at most N cells: real cells first, then virtual cells, then padding.

    Attributes
    ----------
    cell_embeddings : (B, N, 256) float32
    coords_um : (B, N, 2) float32, micrometres
    is_virtual : (B, N) bool
    is_padding : (B, N) bool
    is_masked : (B, N) bool
        Cells whose embedding is hidden from the model; it reads its learned mask vector instead.
    is_cls : (B, N) bool or None
        The token of the sub-slice itself, in front in published batches, behind all others where `with_cls` put it; None where there is none.
    """

    cell_embeddings: Tensor
    coords_um: Tensor
    is_virtual: Tensor
    is_padding: Tensor
    is_masked: Tensor
    is_cls: Tensor | None = None

    @property
    def is_cell(self) -> Tensor:
        """(B, N) bool, real cells."""
        is_other = self.is_virtual | self.is_padding
        return ~is_other if self.is_cls is None else ~(is_other | self.is_cls)

    def with_cls(self) -> SubSliceBatch:
        """Return the batch with one token more, behind cells, virtual cells and padding: the sub-slice itself, which has no place."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "is_cls"}
        longer = {name: torch.cat([array, torch.zeros_like(array[:, :1])], dim=1) for name, array in arrays.items()}
        is_cls = torch.zeros_like(longer["is_padding"])
        is_cls[:, -1] = True
        return SubSliceBatch(**longer, is_cls=is_cls)

    def to(self, device: torch.device | str) -> SubSliceBatch:
        """Return the batch on `device`."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: array.to(device) for name, array in arrays.items() if array is not None})


def collate(sub_slices: Sequence[Mapping[str, np.ndarray]]) -> SubSliceBatch:
    """Pad sub-slices (arrays named as in `stofm.fields`) to the largest of them; ``is_masked`` is taken where present.

    Raises
    ------
    DataError
        If there is no sub-slice, one has no cell, or a place or an embedding is not finite.
    """
    if not sub_slices:
        raise DataError("batch: found no sub-slice; expected one at least.")
    sizes = [(len(one[COORDS_UM]), len(one[VIRTUAL_COORDS_UM])) for one in sub_slices]
    B, N = len(sizes), max(n + v for n, v in sizes)
    embeddings = np.zeros((B, N, EMBEDDING_DIM), np.float32)
    coords = np.zeros((B, N, 2), np.float32)
    is_virtual, is_padding, is_masked = np.zeros((B, N), bool), np.ones((B, N), bool), np.zeros((B, N), bool)
    for b, (one, (n, v)) in enumerate(zip(sub_slices, sizes, strict=True)):
        embeddings[b, :n], embeddings[b, n : n + v] = one[CELL_EMBEDDINGS], one[VIRTUAL_EMBEDDINGS]
        coords[b, :n], coords[b, n : n + v] = one[COORDS_UM], one[VIRTUAL_COORDS_UM]
        is_virtual[b, n : n + v] = True
        is_padding[b, : n + v] = False
        is_masked[b, :n] = one.get("is_masked", False)
        if n == 0:
            raise DataError(f"sub-slice {b} of the batch: found no cell; expected one at least. Leave it out.")
        for name, array in ((COORDS_UM, coords[b]), (CELL_EMBEDDINGS, embeddings[b])):
            if not np.isfinite(array).all():
                n_bad = int((~np.isfinite(array).all(axis=1)).sum())
                raise DataError(f"sub-slice {b} of the batch: {name} of {n_bad} cells or virtual cells are not finite; expected numbers. Drop them.")
    return SubSliceBatch(*map(torch.from_numpy, (embeddings, coords, is_virtual, is_padding, is_masked)))
