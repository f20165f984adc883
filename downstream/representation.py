"""A slice through the SE(2) transformer: sub-slices in, what they tell of each cell averaged, a representation for every cell out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from corpus.cell_arrays import CellArray, NewArray, row_blocks
from corpus.halo import blend_weights
from corpus.published_scheme import extract_published, published_distances
from corpus.scales import GeneScale, ScaleConfig, sub_slice_arrays
from corpus.slice import BoolArray, FloatArray, IntArray
from corpus.sub_slices import cut_sub_slices
from corpus.virtual_cells import VirtualCells, make_virtual_cells
from downstream.memory import in_batches, return_freed, sub_slices_in
from stofm.batch import SubSliceBatch, collate
from stofm.fields import EMBEDDING_DIM
from stofm.geometry import Pairs
from stofm.published_batch import PublishedSubSlice, collate_published

if TYPE_CHECKING:
    from downstream.embedding import Embedder


@torch.inference_mode()
def represent_cells(
    scale: GeneScale,
    embeddings: CellArray,
    embedder: Embedder,
    *,
    virtual: VirtualCells | None = None,
    is_shifted: bool = False,
    is_wanted: BoolArray | None = None,
    max_memory: int | None = None,
    new_array: NewArray = np.zeros,
) -> CellArray:
    """Run the SE(2) transformer over a slice; (n, 256) float32 in the order of `scale`.

    What several sub-slices tell of a cell, the one that owns it and those that see it as context, is averaged (`corpus.halo.blend_weights`).

    Parameters
    ----------
    virtual : VirtualCells, optional
        Spares making them again where the caller has them.
    is_shifted : bool
        By another tiling of the slice, to see what the borders of sub-slices do (`downstream.seams`).
    is_wanted : (n,) bool, optional
        Only what these cells need is computed; cells that no sub-slice was read for are NaN.
    max_memory : int, optional
        Bytes that the process may hold: decides how many sub-slices are read at once, not what comes out.
    new_array : NewArray
        Makes what is returned.

    Raises
    ------
    BadSlice
        Under `scheme: published`, if the cells lie in a point or a line; see `corpus.published_scheme`.
    """
    transformer = embedder.model.se2_transformer
    device = next(transformer.parameters()).device
    if embedder.scales.scheme == "published":
        seen, read = _published_input(scale, embeddings)
    else:
        seen, read = _tissue_input(scale, embeddings, embedder.scales, virtual, is_shifted=is_shifted)
    return_freed()
    numbers = [number for number, (rows, weights) in enumerate(seen) if is_wanted is None or (is_wanted[rows] & (weights > 0)).any()]
    by_size = sorted(numbers, key=lambda number: len(seen[number][0]))  # little padding
    total, weight = new_array(embeddings.shape, np.float32), np.zeros((len(embeddings), 1), np.float32)

    def represent(numbers: list[int]) -> None:
        batch, pairs = read(numbers, device)
        output, is_cell = transformer(batch, pairs).cell_repr.float().cpu().numpy(), batch.is_cell.cpu().numpy()
        told = [tokens[of_cells] for tokens, of_cells in zip(output, is_cell, strict=True)]
        for number, tokens in zip(numbers, told, strict=True):
            rows, weights = seen[number]
            tokens *= weights[:, None]
            total[rows] += tokens
            weight[rows, 0] += weights

    largest = max((len(rows) for rows, _ in seen), default=1)
    in_batches(by_size, represent, n_most=sub_slices_in(max_memory, largest, on_gpu=device.type != "cpu"), what="sub-slices")
    for block in row_blocks(len(total)):
        told_of = np.full((len(weight[block]), EMBEDDING_DIM), np.nan, np.float32)
        total[block] = np.divide(total[block], weight[block], out=told_of, where=weight[block] > 0)
    return total


Seen = list[tuple[IntArray, FloatArray]]  # of each sub-slice: rows of the scale, and how much it says of each counts
ReadBatch = Callable[[list[int], torch.device], tuple[SubSliceBatch, Pairs | None]]  # of sub-slices with these numbers


def _tissue_input(
    scale: GeneScale, embeddings: CellArray, config: ScaleConfig, virtual: VirtualCells | None, *, is_shifted: bool
) -> tuple[Seen, ReadBatch]:
    virtual = make_virtual_cells(scale.coords_um, embeddings, config.virtual_cells) if virtual is None else virtual
    parts = cut_sub_slices(scale.coords_um, scale.keys, config.sub_slices, is_shifted=is_shifted)

    def read(numbers: list[int], device: torch.device) -> tuple[SubSliceBatch, None]:
        return collate([sub_slice_arrays(scale, embeddings, virtual, parts[number]) for number in numbers]).to(device), None

    return [(one.rows, blend_weights(one.rows, one.n_owned, scale.coords_um)) for one in parts], read


def _published_input(scale: GeneScale, embeddings: CellArray) -> tuple[Seen, ReadBatch]:
    order = np.argsort(scale.rows)  # cells in the order of the file
    published = extract_published(scale.coords_um[order], embeddings[order])
    places, virtual = published.places, published.virtual
    rows = [order[members] for members in published.sub_slices]

    def sub_slice(number: int) -> PublishedSubSlice:
        distances = published_distances(places[published.sub_slices[number]], virtual.coords_um)
        return PublishedSubSlice(embeddings[rows[number]], virtual.embeddings, distances)

    def read(numbers: list[int], device: torch.device) -> tuple[SubSliceBatch, Pairs]:
        return collate_published([sub_slice(number) for number in numbers], device)

    return [(members, np.ones(len(members), np.float32)) for members in rows], read
