"""Laws of reading: no cell of a file is lost without a reason, and what is kept is what the file says of that cell."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from corpus.qc import QualityConfig
from corpus.readers import read_slice, read_slices, read_table, slice_of
from corpus.slice import SliceSpec

N = 400
GENES = ["ACTB", "GAPDH", "NegPrb1", "CD3E", "Blank-7"]
IS_GENE = np.array([True, True, False, True, False])


def faulty_table(rng: np.random.Generator, n_unplaced: int, n_empty: int, n_far: int, n_shallow: int) -> anndata.AnnData:
    """400 cells in two sections side by side, some without a place, without counts, far away or shallow; the kinds may coincide."""
    counts = 2 + rng.poisson(2, (N, len(GENES)))
    coords = 10.0 * np.stack(np.divmod(rng.permutation(N), 20), 1)
    counts[rng.choice(N, n_shallow, replace=False)] = [1, 0, 5, 0, 0]
    counts[rng.choice(N, n_empty, replace=False)] = [0, 0, 9, 0, 9]  # controls alone
    coords[rng.choice(N, n_far, replace=False)] += 1e5
    coords[rng.choice(N, n_unplaced, replace=False), rng.integers(0, 2)] = np.nan
    obs = pd.DataFrame({"slab": rng.choice(["left", "right"], N), "region": [f"r{row}" for row in range(N)]}, index=[f"c{row}" for row in range(N)])
    return anndata.AnnData(
        X=csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=GENES), obsm={"spatial": coords},
        uns={"spatial_unit": "um"})  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("reading") / "made.h5ad"


faults = st.tuples(st.integers(0, 1), st.integers(0, 30), st.integers(0, 3), st.integers(0, 30), st.integers(0, 10**6))


@given(faults, st.sampled_from([None, QualityConfig(), QualityConfig(min_counts=3), QualityConfig(min_counts=8, min_genes=2)]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@pytest.mark.parametrize("section_key", [None, "slab"])
def test_every_cell_of_a_file_is_kept_or_dropped_for_one_reason(path, section_key, fault, quality):
    *numbers, seed = fault
    table = faulty_table(np.random.default_rng(seed), *numbers)
    table.write_h5ad(path)
    slices = read_slices(SliceSpec(path=str(path), section_key=section_key), quality)
    rows = np.concatenate([np.concatenate([one.source_rows, *one.dropped_rows.values()]) for one in slices])
    np.testing.assert_array_equal(np.sort(rows), np.arange(N))
    assert sum(one.n_cells + sum(one.dropped.values()) for one in slices) == N
    for one in slices:
        np.testing.assert_array_equal(one.counts.toarray(), table.X.toarray()[one.source_rows][:, IS_GENE])
        np.testing.assert_array_equal(one.controls.toarray(), table.X.toarray()[one.source_rows][:, ~IS_GENE])
        np.testing.assert_array_equal(one.coords_um, table.obsm["spatial"][one.source_rows])
        np.testing.assert_array_equal(one.labels["region"], table.obs["region"].to_numpy()[one.source_rows])


@given(st.permutations(range(N)), st.integers(0, 10**6))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.large_base_example])
def test_the_order_of_rows_decides_nothing(path, order, seed):
    table = faulty_table(np.random.default_rng(seed), 1, 20, 2, 20)
    table.write_h5ad(path)
    first = read_slice(SliceSpec(path=str(path)), QualityConfig(min_counts=3))
    table[order].copy().write_h5ad(path)
    again = read_slice(SliceSpec(path=str(path)), QualityConfig(min_counts=3))
    assert again.dropped == first.dropped
    np.testing.assert_array_equal(np.sort(np.asarray(order)[again.source_rows]), first.source_rows)


def test_a_table_in_memory_gives_the_slice_that_its_file_gives(path):
    faulty_table(np.random.default_rng(0), 1, 20, 2, 20).write_h5ad(path)
    spec = SliceSpec(path=str(path))
    from_file, from_memory = read_slice(spec), slice_of(read_table(spec), spec)
    np.testing.assert_array_equal(from_file.counts.toarray(), from_memory.counts.toarray())
    np.testing.assert_array_equal(from_file.source_rows, from_memory.source_rows)
    assert from_file.dropped == from_memory.dropped
    assert from_file.source == from_memory.source
