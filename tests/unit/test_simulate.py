"""The simulated world: reproducible, and a signal that is switched off is absent and not merely weak."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from scipy.spatial import cKDTree
from scipy.stats import chi2, chi2_contingency

from corpus.simulate import LANDMARK, NICHE_CELLS, SimulationConfig, simulate_slice, simulate_slices

OFF = {"gene_signal": False, "neighborhood_signal": False, "tissue_signal": False}


def simulated(seed: int = 0, **signals: bool):
    return simulate_slice(SimulationConfig(n_cells=8000, panel_sizes=[40], seed=seed, **{**OFF, **signals}), 0)


def p_independent(one, other, *, inflation: float = 1.0) -> float:
    """Chi-square p-value of independence; `inflation` divides the statistic where draws come in clumps."""
    test = chi2_contingency(pd.crosstab(np.asarray(one), np.asarray(other)))
    return float(chi2.sf(test.statistic / inflation, test.dof))


def neighbor_types(table) -> tuple[np.ndarray, np.ndarray]:
    types = table.obs["cell_type"].to_numpy()
    return types, types[cKDTree(table.obsm["spatial"]).query(table.obsm["spatial"], k=2)[1][:, 1]]


def test_the_same_settings_give_the_same_slices():
    first, second = (simulate_slices(SimulationConfig(n_slices=2, n_cells=200, panel_sizes=[30, 40])) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert (one.X != other.X).nnz == 0
        np.testing.assert_array_equal(one.obsm["spatial"], other.obsm["spatial"])
        pd.testing.assert_frame_equal(one.obs, other.obs)
        pd.testing.assert_frame_equal(one.var, other.var)


def test_other_seeds_and_other_numbers_give_other_slices():
    config = SimulationConfig(n_cells=100, panel_sizes=[30])
    coords = [simulate_slice(config, 0), simulate_slice(config, 1), simulate_slice(SimulationConfig(n_cells=100, panel_sizes=[30], seed=1), 0)]
    assert len({table.obsm["spatial"].tobytes() for table in coords}) == 3


def test_a_slice_does_not_depend_on_how_many_there_are():
    few, many = (simulate_slices(SimulationConfig(n_slices=n, n_cells=100, panel_sizes=[30]))[1] for n in (2, 3))
    np.testing.assert_array_equal(few.obsm["spatial"], many.obsm["spatial"])
    assert (few.X != many.X).nnz == 0


def test_slices_take_panels_and_species_in_turn():
    tables = simulate_slices(SimulationConfig(n_slices=3, n_cells=60, panel_sizes=[30, 40]))
    assert [table.n_vars for table in tables] == [30, 40, 30]
    assert [table.var_names[0][:7] for table in tables] == ["ENSG000", "ENSMUSG", "ENSG000"]


def test_counts_are_whole_and_regions_are_bands():
    table = simulated()
    assert (table.X.data == np.floor(table.X.data)).all()
    assert table.X.data.min() > 0
    assert table.obs["region"].nunique() == 3
    assert table.obs["region"].value_counts().min() > 300


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("neighborhood_signal", [False, True])
def test_without_gene_signal_types_are_equally_frequent_in_all_regions(seed, neighborhood_signal):
    table = simulated(seed, neighborhood_signal=neighborhood_signal)
    inflation = NICHE_CELLS if neighborhood_signal else 1.0
    assert p_independent(table.obs["region"], table.obs["cell_type"], inflation=inflation) > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_without_neighborhood_signal_the_type_of_a_neighbor_is_independent(seed):
    assert p_independent(*neighbor_types(simulated(seed)), inflation=2.0) > 1e-4  # mutual neighbours count twice
    table = simulated(seed, gene_signal=True)
    region = table.obs["region"].to_numpy()
    p_values = [p_independent(*neighbor_types(table[region == name]), inflation=2.0) for name in np.unique(region)]
    assert min(p_values) > 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_without_tissue_signal_there_is_no_landmark(seed):
    assert LANDMARK not in simulated(seed, gene_signal=True, neighborhood_signal=True).obs["cell_type"].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_each_signal_is_there_when_it_is_on(seed):
    table = simulated(seed, gene_signal=True)
    assert p_independent(table.obs["region"], table.obs["cell_type"]) < 1e-20
    assert p_independent(*neighbor_types(simulated(seed, neighborhood_signal=True)), inflation=NICHE_CELLS) < 1e-10
    table = simulated(seed, tissue_signal=True)
    landmark = (table.obs["cell_type"] == LANDMARK).to_numpy()
    assert 0.01 < landmark.mean() < 0.2
    assert table.obs["region"][landmark].unique().tolist() == ["region_0"]


@pytest.mark.parametrize("settings", [{"n_types": 5}, {"n_regions": 6, "n_types": 6}], ids=["odd", "too many regions"])
def test_more_regions_than_pairings_are_refused(settings):
    with pytest.raises(ValidationError, match="pairings, for an even number; expected at least"):
        SimulationConfig(**settings)


FIBRES = {**OFF, "direction_signal": True, "n_types": 4, "n_regions": 2}


def digits_agree(table, region: str, *, n_bins: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """How often two cells of a region share a binary digit of their type, by distance in steps of 10 um: (bins,); and for pairs
    10 to 40 um apart by their direction, in twelve steps of 15 degrees: (12,)."""
    is_here = (table.obs["region"] == region).to_numpy()
    places = table.obsm["spatial"][is_here]
    types = table.obs["cell_type"].str.removeprefix("type_").astype(int).to_numpy()[is_here]
    pairs = cKDTree(places).query_pairs(10.0 * n_bins, output_type="ndarray")
    offset = places[pairs[:, 1]] - places[pairs[:, 0]]
    distance, direction = np.hypot(*offset.T), np.arctan2(offset[:, 1], offset[:, 0]) % np.pi
    agree = np.mean([types[pairs[:, 0]] >> digit & 1 == types[pairs[:, 1]] >> digit & 1 for digit in (0, 1)], axis=0)
    by_distance = [agree[distance // 10 == number].mean() for number in range(n_bins)]
    is_near = (distance > 10) & (distance < 40)
    return np.array(by_distance), np.array([agree[is_near & (direction * 12 // np.pi == number)].mean() for number in range(12)])


def test_fibres_run_along_one_axis_in_one_region_and_along_none_in_the_other():
    tables = simulate_slices(SimulationConfig(n_slices=2, n_cells=1500, panel_sizes=[20], **FIBRES))
    contrast = [[np.ptp(digits_agree(table, region)[1]) for region in ("region_0", "region_1")] for table in tables]
    assert all(fibres > 0.3 > 0.2 > mixed for fibres, mixed in contrast), contrast
    axes = [digits_agree(table, "region_0")[1].argmax() for table in tables]
    assert axes[0] != axes[1]


def test_fibres_cannot_be_told_by_how_often_types_meet_at_a_distance_nor_by_how_frequent_they_are():
    worlds = [simulate_slice(SimulationConfig(n_cells=700, panel_sizes=[20], seed=seed, **FIBRES), 0) for seed in range(16)]
    agreement = np.array([[digits_agree(table, region)[0] for region in ("region_0", "region_1")] for table in worlds])  # (worlds, 2, bins)
    difference = agreement[:, 0] - agreement[:, 1]
    error = difference.std(axis=0, ddof=1) / len(worlds) ** 0.5
    assert (agreement.mean(axis=(0, 1))[:2] > 0.65).all()  # near cells are alike, in both regions
    assert (np.abs(difference.mean(axis=0)) < 4 * error).all()
    assert error.max() < 0.04
    shares = np.mean([pd.crosstab(table.obs["region"], table.obs["cell_type"], normalize="index").to_numpy() for table in worlds], axis=0)
    np.testing.assert_allclose(shares, 0.25, atol=0.1)


def test_other_signals_are_as_they_were_before_there_was_a_direction_signal():
    table = simulate_slice(SimulationConfig(n_cells=50, panel_sizes=[20]), 0)
    assert (table.X.sum(), table.X.nnz, round(float(np.abs(table.obsm["spatial"]).sum()), 6)) == (7042.0, 699, 1787.72366)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"gene_signal": True}, "without gene_signal"), ({"neighborhood_signal": True}, "and neighborhood_signal"), ({"n_types": 6}, "a power of 2")],
    ids=["gene", "neighborhood", "types"],
)
def test_a_direction_signal_beside_what_it_cannot_go_with_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        SimulationConfig(**{**FIBRES, **settings})
