"""The three scales of a slice, extracted: the same steps whether the slice goes into a corpus or to a finished model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field
from scipy.sparse import csr_matrix

from corpus.cell_arrays import CellArray, NewArray, row_blocks
from corpus.cell_order import content_keys, tissue_order
from corpus.gene_vocab import GeneVocab
from corpus.published_scheme import extract_published
from corpus.rank_value import RankValueConfig, rank_value_encode
from corpus.readers.count_blocks import StoredCounts, blocks_of, n_detected
from corpus.record import Record
from corpus.slice import FloatArray, IntArray, StrArray
from corpus.sub_slices import SubSlice, SubSliceConfig, cut_sub_slices
from corpus.virtual_cells import VirtualCellConfig, VirtualCells, make_virtual_cells
from stofm.config import FrozenModel
from stofm.errors import DataError
from stofm.fields import (
    CELL_EMBEDDINGS,
    COORDS_UM,
    GENE_LEVELS,
    GENE_TOKENS,
    IS_CONTEXT,
    N_TOKENS,
    PUBLISHED_PLACES,
    PUBLISHED_VIRTUAL_PLACES,
    ROWS,
    VIRTUAL_COORDS_UM,
    VIRTUAL_EMBEDDINGS,
    VIRTUAL_OF_CELL,
    VIRTUAL_SIZES,
)
from stofm.gene_tokens import GeneTokens

CELLS_TAKEN = 1024  # whose gene tokens, up to some thousands each, are put in order at once
EmbedCells = Callable[[GeneTokens], FloatArray]  # gene tokens of n cells -> (n, 256) float32 cell embeddings, unit length


class ScaleConfig(FrozenModel):
    """How the three scales are extracted; a model carries these settings and applies them to every new slice."""

    scheme: Literal["tissue", "published"] = Field("tissue", description="published: micro and macro scale as published checkpoints need them.")
    rank_value: RankValueConfig = Field(default_factory=RankValueConfig)
    sub_slices: SubSliceConfig = Field(default_factory=SubSliceConfig)
    virtual_cells: VirtualCellConfig = Field(default_factory=VirtualCellConfig)


@dataclass(frozen=True, eq=False)
class GeneScale:
    """The gene scale of one slice, its cells in tissue order; cells that express no gene of the vocabulary are left out.

    Attributes
    ----------
    rows : (n,) int64
        Row of each cell in the slice.
    keys : (n,) uint64
        Content of each cell.
    tokens : GeneTokens of n cells
    coords_um : (n, 2) float64, micrometres
    n_cut : int
        Cells that express more genes of the vocabulary than they have tokens.
    n_genes : int
        Genes that some cell has among its tokens.
    """

    rows: IntArray
    keys: np.ndarray
    tokens: GeneTokens
    coords_um: FloatArray
    n_cut: int = 0
    n_genes: int = 0


def extract_gene_scale(
    counts: csr_matrix | StoredCounts,
    human_ids: StrArray,
    coords_um: FloatArray,
    vocab: GeneVocab,
    config: RankValueConfig,
    *,
    new_array: NewArray = np.zeros,
) -> GeneScale:
    """Count the vocabulary's genes in every cell and encode them, a block of cells at a time; `new_array` makes what holds their gene tokens."""
    n_entries = int(n_detected(counts).sum())
    encoded, levels, n_encoded = new_array((n_entries,), np.uint32), new_array((n_entries,), np.uint8), 0
    all_keys, all_lengths, is_seen, n_cut = [], [], np.zeros(vocab.n_tokens, bool), 0
    for block in blocks_of(counts):
        of_vocab = vocab.count(block, human_ids)
        tokens = rank_value_encode(of_vocab, vocab.medians, max_tokens=config.max_tokens)
        of_block = slice(n_encoded, n_encoded := n_encoded + len(tokens.tokens))
        encoded[of_block], levels[of_block] = tokens.tokens, tokens.levels
        is_seen[tokens.tokens] = True
        n_cut += int((np.diff(of_vocab.indptr) > config.max_tokens).sum())
        all_keys.append(content_keys(of_vocab))
        all_lengths.append(tokens.lengths.astype(np.uint16))
    in_file_order = GeneTokens.of_lengths(encoded, np.concatenate(all_lengths), levels)
    kept = np.flatnonzero(in_file_order.lengths)
    keys = np.concatenate(all_keys)[kept]
    order = tissue_order(keys, coords_um[kept]) if len(kept) else kept
    rows = kept[order]
    return GeneScale(rows, keys[order], _in_order(in_file_order, rows, new_array), coords_um[rows], n_cut, int(is_seen.sum()))


def _in_order(tokens: GeneTokens, cells: IntArray, new_array: NewArray) -> GeneTokens:
    """Gene tokens of these cells, in that order."""
    n_entries = int(tokens.offsets[-1])
    of_tokens, of_levels = new_array((n_entries,), np.uint32), new_array((n_entries,), np.uint8)
    ordered = GeneTokens.of_lengths(of_tokens, tokens.lengths[cells], of_levels)
    for block in row_blocks(len(cells), CELLS_TAKEN):
        taken, place = tokens.take(cells[block]), slice(ordered.offsets[block.start], ordered.offsets[block.stop])
        of_tokens[place], of_levels[place] = taken.tokens, taken.levels
    return ordered


def token_records(scale: GeneScale, vocab: GeneVocab, config: SubSliceConfig) -> Iterator[Record]:
    """Yield one record per sub-slice for training the cell encoder: gene tokens, their levels and places."""
    dtype = np.uint16 if vocab.n_tokens <= np.iinfo(np.uint16).max else np.uint32
    for members in (sub_slice.owned for sub_slice in cut_sub_slices(scale.coords_um, scale.keys, config.for_training)):
        tokens = scale.tokens.take(members)
        assert tokens.levels is not None
        arrays = {
            ROWS: scale.rows[members].astype(np.uint32),
            COORDS_UM: _centred(scale.coords_um[members])[0],
            GENE_TOKENS: tokens.tokens.astype(dtype),
            GENE_LEVELS: tokens.levels,
            N_TOKENS: tokens.lengths.astype(np.uint16),
        }
        yield arrays, len(members), int(tokens.lengths.max())


def embedded_records(scale: GeneScale, embed_cells: EmbedCells, config: ScaleConfig) -> Iterator[Record]:
    """Yield one record per sub-slice for the SE(2) transformer: cell embeddings, places and the virtual cells of the slice.

    With context in training, a record also holds that of its sub-slice, marked as such; every cell is owned by one record.
    A slice of which no cell has a token gives no record.
    """
    if not len(scale.rows):
        return
    if config.scheme == "published":
        yield from _published_records(scale, embed_cells)
        return
    embeddings = _embeddings_of(scale, embed_cells).astype(np.float16)  # rounded before the virtual cells are made from them
    virtual = make_virtual_cells(scale.coords_um, embeddings.astype(np.float32), config.virtual_cells)
    for one in cut_sub_slices(scale.coords_um, scale.keys, config.sub_slices.for_training):
        yield {ROWS: scale.rows[one.rows].astype(np.uint32), **sub_slice_arrays(scale, embeddings, virtual, one)}, len(one.rows), 0


def _published_records(scale: GeneScale, embed_cells: EmbedCells) -> Iterator[Record]:
    """Yield the records of `scheme: published`, cells in the order of the file; see `corpus.published_scheme`."""
    order = np.argsort(scale.rows)
    rows, embeddings = scale.rows[order].astype(np.uint32), _embeddings_of(scale, embed_cells)[order]
    published = extract_published(scale.coords_um[order], embeddings)
    for members in published.sub_slices:
        arrays = {
            ROWS: rows[members],
            PUBLISHED_PLACES: published.places[members].astype(np.float32),
            CELL_EMBEDDINGS: embeddings[members],
            VIRTUAL_OF_CELL: published.virtual.of_cell[members].astype(np.uint16),
            PUBLISHED_VIRTUAL_PLACES: published.virtual.coords_um.astype(np.float32),
            VIRTUAL_EMBEDDINGS: published.virtual.embeddings,
            VIRTUAL_SIZES: published.virtual.sizes.astype(np.uint32),
        }
        yield arrays, len(members), 0


def _embeddings_of(scale: GeneScale, embed_cells: EmbedCells) -> FloatArray:
    """Embed the cells of a slice; `DataError` unless every one gets numbers, for rows are joined by their order alone."""
    embeddings = embed_cells(scale.tokens)
    if len(embeddings) != len(scale.rows):
        raise DataError(f"cell embeddings: found {len(embeddings)} rows; expected {len(scale.rows)}, one a cell. Correct the encoder.")
    n_bad = int((~np.isfinite(embeddings)).any(axis=1).sum())
    if n_bad:
        raise DataError(f"cell embeddings: found NaN or infinity in {n_bad} of {len(scale.rows)} cells; expected numbers. "
                        "Check the weights of the cell encoder.")  # fmt: skip
    return embeddings


def sub_slice_arrays(scale: GeneScale, embeddings: CellArray, virtual: VirtualCells, sub_slice: SubSlice) -> dict[str, np.ndarray]:
    """Return what the SE(2) transformer reads of one sub-slice, places relative to its centre (see `stofm.fields`)."""
    members = sub_slice.rows
    coords, centre = _centred(scale.coords_um[members])
    context = {IS_CONTEXT: np.arange(len(members)) >= sub_slice.n_owned} if sub_slice.n_owned < len(members) else {}
    return {
        **context,
        COORDS_UM: coords,
        CELL_EMBEDDINGS: embeddings[members],
        VIRTUAL_OF_CELL: virtual.of_cell[members].astype(np.uint16),
        VIRTUAL_COORDS_UM: (virtual.coords_um - centre).astype(np.float32),
        VIRTUAL_EMBEDDINGS: virtual.embeddings,
        VIRTUAL_SIZES: virtual.sizes.astype(np.uint32),
    }


def _centred(coords_um: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Places relative to their mean, (n, 2) float32, and the mean, (2,) float64; micrometres."""
    centre = coords_um.mean(axis=0)
    return (coords_um - centre).astype(np.float32), centre
