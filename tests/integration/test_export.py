"""Exports: what other programs read has the same cells, groups, places and numbers."""

from __future__ import annotations

import gzip
import json

import anndata
import numpy as np
import pandas as pd
import pytest
from cli import refused, succeed
from scipy.io import mmread


@pytest.fixture(scope="module")
def predicted(embedded, region_head, tmp_path_factory):
    out = tmp_path_factory.mktemp("predicted") / "out"
    succeed("segment", "predict", embedded[2], "--head", region_head, "--out", out)
    return out / "slice_2.h5ad"


def test_xenium_explorer_gets_the_group_of_every_cell(predicted, tmp_path):
    succeed("export", predicted, "--to", "xenium-explorer", "--out", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out/slice_2-xenium-explorer/cell_groups.csv", dtype=str)
    assert table.columns.tolist() == ["cell_id", "group"]
    obs = anndata.read_h5ad(predicted).obs
    assert table["cell_id"].tolist() == obs.index.tolist()
    assert table["group"].tolist() == obs["stofm_region"].tolist()


def test_geojson_has_a_feature_per_cell_in_micrometres(predicted, tmp_path):
    succeed("export", predicted, "--to", "geojson", "--out", tmp_path / "out")
    features = json.loads((tmp_path / "out/slice_2-geojson/cells.geojson").read_text())["features"]
    table = anndata.read_h5ad(predicted)
    assert {one["geometry"]["type"] for one in features} == {"Point"}
    np.testing.assert_allclose([one["geometry"]["coordinates"] for one in features], table.obsm["spatial"])
    assert [one["properties"]["cell_id"] for one in features] == table.obs_names.tolist()
    assert [one["properties"]["group"] for one in features] == table.obs["stofm_region"].tolist()


def test_r_gets_counts_by_gene_and_everything_else_by_cell(predicted, tmp_path):
    succeed("export", predicted, "--to", "seurat", "--out", tmp_path / "out")
    here, table = tmp_path / "out/slice_2-seurat", anndata.read_h5ad(predicted)
    with gzip.open(here / "matrix.mtx.gz") as file:
        np.testing.assert_array_equal(mmread(file).toarray().T, table.X.toarray())
    assert pd.read_csv(here / "features.tsv.gz", sep="\t", header=None)[0].tolist() == table.var_names.tolist()
    barcodes = pd.read_csv(here / "barcodes.tsv.gz", header=None, dtype=str)[0].tolist()
    assert barcodes == table.obs_names.tolist()
    embedding = pd.read_csv(here / "stofm.csv.gz", index_col=0)
    np.testing.assert_allclose(embedding.to_numpy(), table.obsm["X_stofm"], atol=1e-6)
    assert embedding.columns[[0, -1]].tolist() == ["STOFM_1", "STOFM_256"]
    np.testing.assert_allclose(pd.read_csv(here / "coordinates.csv.gz", index_col=0).to_numpy(), table.obsm["spatial"])


def test_what_cannot_be_exported_is_refused(embedded, simulated_paths, tmp_path):
    assert "--to: found 'excel'" in refused("export", embedded[0], "--to", "excel", "--out", tmp_path / "out")
    assert "found no obsm['X_stofm']" in refused("export", simulated_paths[0], "--to", "geojson", "--out", tmp_path / "out")
    assert "expected 'stofm_region or stofm_cell_type'" in refused("export", embedded[0], "--to", "xenium-explorer", "--out", tmp_path / "out")
    succeed("export", embedded[0], "--to", "xenium-explorer", "--group", "region", "--out", tmp_path / "out")
    line = refused("export", embedded[0], "--to", "xenium-explorer", "--group", "region", "--out", tmp_path / "out")
    assert "found an export; expected none" in line
