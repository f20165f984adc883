"""What a corpus asks of a slice: its geometry, spacing, size and depth, by technology; what is dropped is counted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from corpus.qc import FAR_AWAY, FLOORS, TOO_FEW_COUNTS, TOO_FEW_GENES, QualityConfig, floors_of, for_corpus, is_far_away, obs_unit_of
from corpus.slice import Slice
from stofm.errors import BadSlice

DEFAULTS = QualityConfig()
GRID = np.stack(np.meshgrid(np.arange(20.0), np.arange(20.0)), -1).reshape(-1, 2)


def slice_at(coords: np.ndarray, counts: np.ndarray | None = None, technology: str = "Xenium") -> Slice:
    counts = np.full((len(coords), 3), 2) if counts is None else counts
    names = np.array(["A", "B", "C"])
    return Slice("made_up", csr_matrix(counts.astype(np.float32)), names, np.array([""] * 3), coords, "human", source={"technology": technology})


def test_a_good_slice_passes_as_it_is():
    good = slice_at(GRID * 10)
    assert for_corpus(good, DEFAULTS) is good


@pytest.mark.parametrize(
    ("coords", "shape"),
    [
        (np.zeros((400, 2)), "point"),
        (np.stack([np.arange(400) * 10.0, np.full(400, 3.0)], 1), "line"),
        (np.arange(400)[:, None] * np.array([6.0, 8.0]) + 1e4, "line"),
        (GRID[:1], "point"),
        (GRID[:2] * 10, "line"),
    ],
    ids=["one point", "along x", "slanted", "one cell", "two cells"],
)
def test_cells_on_a_line_or_a_point_are_refused(coords, shape):
    with pytest.raises(BadSlice, match=f"lie on one {shape}; expected a tissue") as refusal:
        for_corpus(slice_at(coords), DEFAULTS)
    assert refusal.value.code == "DEGENERATE_GEOMETRY"


@pytest.mark.parametrize(
    ("technology", "low", "high"),
    [("10x Xenium (313 genes)", 2, 40), ("Slide-seqV2", 2, 40), ("10x Visium", 40, 300), ("Visium HD", 2, 40), ("unheard of", 1, 100)],
)
def test_spacing_must_be_that_of_the_technology(technology, low, high):
    for_corpus(slice_at(GRID * low, technology=technology), DEFAULTS)
    for_corpus(slice_at(GRID * high, technology=technology), DEFAULTS)
    for factor in (low * 0.9, high * 1.1):
        with pytest.raises(
            BadSlice, match=f"nearest cells are {factor:.4g} um apart .median.; expected {low} to {high}. Set `um_per_unit`"
        ) as refusal:
            for_corpus(slice_at(GRID * factor, technology=technology), DEFAULTS)
        assert refusal.value.code == "UNIT_SUSPECT"


def test_a_spacing_that_the_user_expects_goes_before_the_usual_one():
    for_corpus(slice_at(GRID * 60), QualityConfig(spacing_um=(50, 70)))


def test_a_cell_far_away_is_dropped():
    coords = np.vstack([GRID * 10, [[1e6, 0]]])
    kept = for_corpus(slice_at(coords), DEFAULTS)
    assert kept.dropped == {FAR_AWAY: 1}
    assert kept.dropped_rows[FAR_AWAY].tolist() == [400]
    np.testing.assert_array_equal(kept.coords_um, GRID * 10)


def test_far_away_is_measured_by_where_the_middle_half_lies():
    x = np.concatenate([np.linspace(-1, 1, 101), [10.7, 10.9, -10.9]])  # quartiles close to -0.5 and 0.5
    assert is_far_away(np.stack([x, np.linspace(0, 1, 104)], 1)).tolist() == [False] * 102 + [True] * 2


def test_cells_that_share_a_place_are_kept():
    assert for_corpus(slice_at(np.repeat(GRID * 10, 2, axis=0)), DEFAULTS).n_cells == 800


def test_cells_below_the_floors_are_dropped_with_the_reason():
    counts = np.full((400, 3), 5)
    counts[3], counts[7], counts[9] = [1, 0, 0], [30, 0, 0], [1, 1, 1]
    kept = for_corpus(slice_at(GRID * 10, counts), QualityConfig(min_counts=4, min_genes=2))
    assert {reason: rows.tolist() for reason, rows in kept.dropped_rows.items()} == {TOO_FEW_COUNTS: [3, 9], TOO_FEW_GENES: [7]}
    assert 3 not in kept.source_rows


def test_the_vendors_floor_holds_for_seekspace():
    counts = np.full((400, 3), 70)
    counts[:5] = 66
    assert for_corpus(slice_at(GRID * 10, counts, "SeekSpace"), DEFAULTS).dropped == {TOO_FEW_COUNTS: 5}


@pytest.mark.parametrize(("technology", "least"), [("MERSCOPE", 200), ("Curio", 200), ("Spatial Transcriptomics (ST)", 50)])
def test_slices_of_too_few_cells_are_refused(technology, least):
    coords = GRID * (100 if least == 50 else 10)
    assert for_corpus(slice_at(coords[:least], technology=technology), DEFAULTS).n_cells == least
    with pytest.raises(BadSlice, match=f"found {least - 1} cells, {least - 1} of them left; expected at least {least}") as refusal:
        for_corpus(slice_at(coords[: least - 1], technology=technology), DEFAULTS)
    assert refusal.value.code == "TOO_SMALL"
    assert for_corpus(slice_at(coords[:30], technology=technology), QualityConfig(min_cells=20)).n_cells == 30


def test_a_slice_of_which_nothing_is_left_is_empty():
    with pytest.raises(BadSlice, match="found 400 cells, none of them left: too few counts") as refusal:
        for_corpus(slice_at(GRID * 10), QualityConfig(min_counts=100))
    assert refusal.value.code == "EMPTY"


@pytest.mark.parametrize(
    ("technology", "unit", "kind"),
    [
        ("10x Visium (55 um spots, 100 um pitch)", "spot", "spot"),
        ("Visium HD", "cell", "cell"),
        ("Slide-seq v1 (10 um beads)", "bead", "bead"),
        ("SeekSpace", "cell", "nucleus"),
        ("MERFISH", "cell", "cell"),
        ("simulated", "cell", "unknown"),
    ],
)
def test_technologies_are_known_by_words_in_their_names(technology, unit, kind):
    assert obs_unit_of(technology) == unit
    assert floors_of(technology) is FLOORS[kind]
