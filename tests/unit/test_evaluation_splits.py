"""Splits of an evaluation: every cell in its role, nothing of a donor on both sides, a gap around held-out blocks, stored once."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.spatial.distance import cdist

from corpus.slice import Slice, nearest_spacing
from downstream.splits import HELD_OUT, LEFT_OUT, TRAINING, SplitConfig, make_folds, stored_folds, tissue_blocks
from stofm.errors import DataError


def made_slice(name: str, donor: str = "", n_cells: int = 300) -> Slice:
    rng = np.random.default_rng(len(name) + n_cells)
    genes = np.array(["A", "B", "C"])
    source = {"donor": donor or name}
    return Slice(
        name, csr_matrix(rng.integers(1, 9, (n_cells, 3)).astype(np.float32)), genes, genes, rng.uniform(0, 400, (n_cells, 2)), "human", source=source
    )


SLICES = [made_slice("a", "one"), made_slice("bb", "one"), made_slice("ccc", "two", n_cells=200)]
BY = ["slice", "donor", "blocks", "random"]


@pytest.mark.parametrize("by", BY)
def test_every_cell_is_held_out_at_most_once_and_trained_on_elsewhere(by):
    folds = make_folds(SLICES, SplitConfig(by=by), seed=0)
    for number in range(len(SLICES)):
        n_held = sum((fold.roles[number] == HELD_OUT).astype(int) for fold in folds)
        assert n_held.max() == 1
        assert by == "random" or n_held.min() == 1


def test_a_donor_is_never_on_both_sides():
    folds = make_folds(SLICES, SplitConfig(by="donor"), seed=0)
    assert [fold.name for fold in folds] == ["one", "two"]
    assert [[int(roles[0]) for roles in fold.roles] for fold in folds] == [[HELD_OUT, HELD_OUT, TRAINING], [TRAINING, TRAINING, HELD_OUT]]


def test_no_training_cell_lies_within_the_gap_of_a_held_out_one():
    st_slice = SLICES[0]
    for fold in make_folds([st_slice], SplitConfig(by="blocks", gap_spacings=2.0), seed=1):
        roles, gap = fold.roles[0], 2.0 * nearest_spacing(st_slice.coords_um)
        distance = cdist(st_slice.coords_um, st_slice.coords_um[roles == HELD_OUT]).min(axis=1)
        assert (distance[roles == TRAINING] > gap).all()
        assert (distance[roles == LEFT_OUT] <= gap).all()
        assert (roles == LEFT_OUT).any()


def test_without_a_gap_every_cell_is_on_one_side():
    for fold in make_folds([SLICES[0]], SplitConfig(by="blocks", gap_spacings=0), seed=1):
        assert (fold.roles[0] != LEFT_OUT).all()


def test_blocks_are_the_same_however_the_tissue_is_turned():
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    one = SLICES[0]
    turned = Slice(one.slice_id, one.counts, one.gene_names, one.ensembl_ids, one.coords_um @ turn.T + 50, one.species)
    np.testing.assert_array_equal(tissue_blocks(one, 12), tissue_blocks(turned, 12))


def test_random_holds_out_a_fifth():
    (fold,) = make_folds(SLICES, SplitConfig(by="random"), seed=3)
    assert [int((roles == HELD_OUT).sum()) for roles in fold.roles] == [60, 60, 40]


@pytest.mark.parametrize("by", ["blocks", "random"])
def test_seeds_hold_out_different_cells(by):
    first, second = (make_folds(SLICES, SplitConfig(by=by), seed=seed)[0].roles[0] for seed in (0, 1))
    assert (first != second).any()


@pytest.mark.parametrize(("by", "slices"), [("slice", SLICES[:1]), ("donor", SLICES[:2])])
def test_a_split_without_training_cells_is_refused(by, slices):
    with pytest.raises(DataError, match="found no training cells beside"):
        make_folds(slices, SplitConfig(by=by), seed=0)


@pytest.mark.parametrize("by", BY)
def test_a_stored_split_is_read_again_and_keeps_its_hash(by, tmp_path):
    config, inputs = SplitConfig(by=by), ["x", "y", "z"]
    folds, sha256 = stored_folds(tmp_path / "split", SLICES, config, seed=0, inputs=inputs)
    again, same = stored_folds(tmp_path / "split", SLICES, config, seed=0, inputs=inputs)
    assert same == sha256
    assert [fold.name for fold in again] == [fold.name for fold in folds]
    for fold, other in zip(folds, again, strict=True):
        for roles, same_roles in zip(fold.roles, other.roles, strict=True):
            np.testing.assert_array_equal(roles, same_roles)


def test_another_input_has_another_hash(tmp_path):
    hashes = {stored_folds(tmp_path / name, SLICES, SplitConfig(), seed=0, inputs=[name, "y", "z"])[1] for name in "ab"}
    assert len(hashes) == 2
