"""Laws of the scales: how the tissue lies and how its file is sorted change nothing; a cell's depth changes no token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.spatial.distance import cdist
from synth import MOTIONS, spot_grid, turned

from corpus.cell_order import content_keys
from corpus.rank_value import RankValueConfig, rank_value_encode
from corpus.scales import ScaleConfig, embedded_records, extract_gene_scale, token_records
from corpus.sub_slices import SubSliceConfig, cut_sub_slices
from stofm.fields import CELL_EMBEDDINGS, COORDS_UM, IS_CONTEXT, ROWS, VIRTUAL_COORDS_UM, VIRTUAL_EMBEDDINGS, VIRTUAL_OF_CELL, VIRTUAL_SIZES
from stofm.gene_tokens import GeneTokens

PLACES = {
    "tissue": None,
    "visium": spot_grid(15, 26),
    "square": np.stack([np.arange(400) % 20, np.arange(400) // 20], axis=1) * 200.0,  # as wide as it is long
}


@pytest.fixture(params=PLACES)
def tissue(request, tiny_corpus):
    """Counts, gene ids and places of cells: of a simulated tissue, or the same cells on a regular grid of spots."""
    truth, places = tiny_corpus.truth("slice_0"), PLACES[request.param]
    coords = truth.coords_um if places is None else places
    return truth.counts[: len(coords)], truth.human_ids, coords


def embed(tokens: GeneTokens) -> np.ndarray:
    """Cell embeddings that depend on the ranked genes of each cell alone."""
    table = np.random.default_rng(0).normal(size=(1000, 256))
    cells = [np.arange(len(cell), 0, -1) @ table[cell] for cell in np.split(tokens.tokens, tokens.offsets[1:-1])]
    return np.array([cell / np.linalg.norm(cell) for cell in cells], dtype=np.float32)


def scales_of(corpus, counts, human_ids, coords, rows) -> dict:
    """Groups and virtual cells of a slice whose row i is cell `rows[i]` of the original, in terms of the original's cells."""
    scale = extract_gene_scale(counts, human_ids, coords, corpus.vocab, corpus.scales.rank_value)
    records = [arrays for arrays, _, _ in embedded_records(scale, embed, corpus.scales)]
    cells = [rows[arrays[ROWS].astype(int)] for arrays in records]
    virtual_of = np.full(len(rows), -1)
    virtual_of[np.concatenate(cells)] = np.concatenate([arrays[VIRTUAL_OF_CELL] for arrays in records])
    members = [frozenset(np.flatnonzero(virtual_of == v).tolist()) for v in range(len(records[0][VIRTUAL_SIZES]))]
    by_first = np.argsort([min(cells) for cells in members])
    embeddings = np.zeros((len(rows), 256))
    to_virtual = np.zeros((len(rows), len(members)))
    for here, arrays in zip(cells, records, strict=True):
        embeddings[here] = arrays[CELL_EMBEDDINGS]
        to_virtual[here] = np.linalg.norm(arrays[COORDS_UM][:, None] - arrays[VIRTUAL_COORDS_UM][None], axis=2)[:, by_first]
    return {
        "groups": {frozenset(here.tolist()) for here in cells},
        "members": set(members),
        "sizes": records[0][VIRTUAL_SIZES][by_first],
        "embeddings": embeddings,
        "virtual embeddings": records[0][VIRTUAL_EMBEDDINGS][by_first],
        "distances to virtual cells": to_virtual,
    }


def assert_same_scales(one: dict, other: dict) -> None:
    assert one["groups"] == other["groups"]
    assert one["members"] == other["members"]
    assert one["sizes"].tolist() == other["sizes"].tolist()
    np.testing.assert_array_equal(one["embeddings"], other["embeddings"])
    np.testing.assert_allclose(one["virtual embeddings"], other["virtual embeddings"], atol=1e-6)
    np.testing.assert_allclose(one["distances to virtual cells"], other["distances to virtual cells"], atol=1e-2)  # micrometres in float32


@pytest.mark.parametrize("motion", MOTIONS.values(), ids=MOTIONS.keys())
def test_how_the_tissue_lies_changes_no_scale(tiny_corpus, tissue, motion):
    counts, human_ids, coords = tissue
    rows = np.arange(len(coords))
    lying = scales_of(tiny_corpus, counts, human_ids, coords, rows)
    assert len(lying["groups"]) == 3
    assert len(lying["members"]) == len(coords) // 40
    assert_same_scales(lying, scales_of(tiny_corpus, counts, human_ids, motion(coords), rows))


@pytest.mark.parametrize("seed", range(2))
def test_the_row_order_of_the_file_changes_no_scale(tiny_corpus, tissue, seed):
    counts, human_ids, coords = tissue
    rows = np.random.default_rng(seed).permutation(len(coords))
    sorted_otherwise = scales_of(tiny_corpus, counts[rows], human_ids, coords[rows], rows)
    assert_same_scales(scales_of(tiny_corpus, counts, human_ids, coords, np.sort(rows)), sorted_otherwise)


def test_with_a_halo_every_cell_is_owned_by_one_record_and_seen_near_it_as_context(tiny_corpus):
    truth, near_um = tiny_corpus.truth("slice_0"), 40.0
    scales = ScaleConfig(sub_slices=SubSliceConfig(n_cells=100, halo_um=near_um), virtual_cells=tiny_corpus.scales.virtual_cells)
    scale = extract_gene_scale(truth.counts, truth.human_ids, truth.coords_um, tiny_corpus.vocab, scales.rank_value)
    records = [arrays for arrays, _, _ in embedded_records(scale, embed, scales)]
    rows, is_context = [one[ROWS].astype(int) for one in records], [one[IS_CONTEXT] for one in records]
    owned = [cells[~context] for cells, context in zip(rows, is_context, strict=True)]
    assert np.sort(np.concatenate(owned)).tolist() == np.sort(scale.rows).tolist()
    assert len(records) == 4
    assert all(context.any() for context in is_context)
    to_owned = [cdist(truth.coords_um, truth.coords_um[cells]).min(axis=1) for cells in owned]
    assert [np.sort(cells).tolist() for cells in rows] == [np.flatnonzero(distance <= near_um).tolist() for distance in to_owned]
    token_rows = [arrays[ROWS] for arrays, _, _ in token_records(scale, tiny_corpus.vocab, scales.sub_slices)]
    assert np.sort(np.concatenate(token_rows)).tolist() == np.sort(scale.rows).tolist()


@pytest.mark.parametrize(("settings", "is_seen"), [({}, False), ({"context_in_training": True}, True), ({"halo_um": 0.0}, False)], ids=str)
def test_a_model_is_trained_on_context_only_where_asked(tiny_corpus, settings, is_seen):
    truth = tiny_corpus.truth("slice_0")
    scales = ScaleConfig(sub_slices=SubSliceConfig(n_cells=100, **settings), virtual_cells=tiny_corpus.scales.virtual_cells)
    scale = extract_gene_scale(truth.counts, truth.human_ids, truth.coords_um, tiny_corpus.vocab, scales.rank_value)
    assert [IS_CONTEXT in arrays for arrays, _, _ in embedded_records(scale, embed, scales)] == [is_seen] * 4


@pytest.mark.parametrize("degrees", [0.1, 30.0, 60.0, 73.0, 180.0])
def test_ties_of_a_spot_grid_are_broken_alike_however_it_lies(tiny_corpus, degrees):
    grid = spot_grid(15, 25)  # the cut goes through a column of spots
    keys = content_keys(tiny_corpus.truth("slice_0").counts)[: len(grid)]
    assert len(np.unique(keys)) == len(grid)
    first, second = (one.owned for one in cut_sub_slices(grid, keys, SubSliceConfig(n_cells=188)))
    n_ties = int(np.isin(grid[:, 0], np.intersect1d(grid[first, 0], grid[second, 0])).sum())
    again = cut_sub_slices(turned(grid, degrees), keys, SubSliceConfig(n_cells=188))
    n_moved = min(len(set(first.tolist()) ^ set(part.owned.tolist())) for part in again)
    assert n_ties >= 7
    assert n_moved == 0


def test_the_order_of_the_genes_in_the_file_changes_no_token(tiny_corpus):
    truth, vocab = tiny_corpus.truth("slice_0"), tiny_corpus.vocab
    columns = np.random.default_rng(0).permutation(truth.counts.shape[1])
    one = extract_gene_scale(truth.counts, truth.human_ids, truth.coords_um, vocab, tiny_corpus.scales.rank_value)
    other = extract_gene_scale(truth.counts[:, columns], truth.human_ids[columns], truth.coords_um, vocab, tiny_corpus.scales.rank_value)
    assert one.rows.tolist() == other.rows.tolist()
    assert one.tokens.tokens.tolist() == other.tokens.tokens.tolist()


MEDIANS = st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0]) | st.floats(0.0078125, 1024, width=32)


@given(genes=st.lists(st.tuples(st.integers(0, 200), MEDIANS), min_size=1, max_size=30), factor=st.integers(1, 1000))
def test_multiplying_all_counts_of_a_cell_keeps_its_tokens_and_levels(genes, factor):
    counts, medians = np.array([[count for count, _ in genes]]), np.array([median for _, median in genes])
    cell, scaled = (rank_value_encode(csr_matrix(matrix), medians, max_tokens=20) for matrix in (counts, counts * factor))
    assert cell.tokens.tolist() == scaled.tokens.tolist()
    assert cell.levels.tolist() == scaled.levels.tolist()


def test_a_slice_without_a_gene_of_the_vocabulary_gives_no_record(tiny_corpus):
    truth, scales = tiny_corpus.truth("slice_0"), tiny_corpus.scales
    strange = np.array([f"strange {number}" for number in range(len(truth.human_ids))], dtype=object)
    scale = extract_gene_scale(truth.counts, strange, truth.coords_um, tiny_corpus.vocab, scales.rank_value)
    assert list(token_records(scale, tiny_corpus.vocab, scales.sub_slices)) == []
    assert list(embedded_records(scale, embed, scales)) == []


def test_cells_of_more_genes_than_tokens_are_cut_and_counted(tiny_corpus):
    truth, vocab = tiny_corpus.truth("slice_0"), tiny_corpus.vocab
    n_genes = np.diff(vocab.count(truth.counts, truth.human_ids).indptr)
    most = int(np.median(n_genes))
    scale = extract_gene_scale(truth.counts, truth.human_ids, truth.coords_um, vocab, RankValueConfig(max_tokens=most))
    assert scale.n_cut == (n_genes > most).sum() > 0
    np.testing.assert_array_equal(scale.tokens.lengths, np.minimum(n_genes, most)[scale.rows])
