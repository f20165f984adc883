"""A held-out block lies together, is the same in any pose, and a slice written as a file reads back as it was."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree
from synth import MOTIONS, random_counts, turned

from corpus.blocks import held_out_block, write_slice
from corpus.readers import read_slice
from corpus.slice import Slice, SliceSpec
from stofm.errors import BadSlice


def tissue(n_cells: int = 200, coords: np.ndarray | None = None) -> Slice:
    places = np.random.default_rng(3).uniform(0, 300, (n_cells, 2)) * [1.5, 1.0] if coords is None else coords
    names = np.array([f"ENSG{number:011d}" for number in range(30)])
    labels = {"region": np.where(places[:, 0] > 200, "right", "left")}
    source = {"technology": "xenium", "donor": "d1", "study": "s1", "license": "CC0", "obs_unit": "cell", "um_per_unit": 1.0}
    return Slice("made_up", random_counts(1, n_cells, 30), names, names, places, "human", labels, source)


@pytest.mark.parametrize("seed", range(3))
def test_a_block_has_its_share_and_lies_together(seed):
    one = tissue()
    is_out = held_out_block(one, share=0.2, seed=seed)
    assert is_out.sum() == 40
    nearest = cKDTree(one.coords_um).query(one.coords_um[is_out], k=2)[1][:, 1]
    assert is_out[nearest].mean() > 0.75, "most cells of it have their nearest neighbour in it"


def test_seeds_choose_different_blocks():
    blocks = {held_out_block(tissue(), share=0.2, seed=seed).tobytes() for seed in range(5)}
    assert len(blocks) == 5


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_block_is_that_of_the_tissue_and_not_of_its_pose(motion):
    one = tissue()
    moved = tissue(coords=MOTIONS[motion](one.coords_um))
    np.testing.assert_array_equal(held_out_block(moved, share=0.25, seed=1), held_out_block(one, share=0.25, seed=1))


@pytest.mark.parametrize(("n_cells", "share"), [(40, 0.2), (12, 0.5), (200, 0.99)])
def test_a_slice_too_small_to_hold_something_out_is_refused(n_cells, share):
    with pytest.raises(BadSlice, match=r"slice 'made_up': found .* to be held out; expected at least 10 on both sides"):
        held_out_block(tissue(n_cells), share=share, seed=0)


def test_a_written_slice_reads_back_as_it_was(tmp_path):
    one = tissue(coords=turned(tissue().coords_um, 20) / 1000)  # so near that a unit would be doubted, were it not written down
    back = read_slice(write_slice(one, tmp_path / "one.h5ad"))
    assert (back.counts != one.counts).nnz == 0
    np.testing.assert_array_equal(back.coords_um, one.coords_um)
    np.testing.assert_array_equal(back.ensembl_ids, one.ensembl_ids)
    np.testing.assert_array_equal(back.labels["region"], one.labels["region"])
    assert (back.slice_id, back.species) == (one.slice_id, one.species)
    assert {name: back.source[name] for name in one.source} == dict(one.source)


def test_parts_of_a_slice_that_was_read_are_all_of_it(simulated_paths, tmp_path):
    one = read_slice(SliceSpec(path=str(simulated_paths[1])))
    is_out = held_out_block(one, share=0.2, seed=0)
    parts = [
        read_slice(write_slice(one.without(kept, "in another part"), tmp_path / f"{number}.h5ad")) for number, kept in enumerate((is_out, ~is_out))
    ]
    assert sum(part.n_cells for part in parts) == one.n_cells
    assert sum(part.counts.sum() for part in parts) == one.counts.sum()
    assert {part.species for part in parts} == {"mouse"}
