"""`stofm cluster`, `deconvolve`, `impute`, `index` as a person types them: what is written, and what is refused."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from cli import contents, refused, succeed


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def narrow(simulated_paths) -> Path:
    """The first slice with all but 10 of its genes."""
    anndata.read_h5ad(simulated_paths[0])[:, 10:].copy().write_h5ad("narrow.h5ad")
    return Path("narrow.h5ad")


def test_clusters_are_written_scored_and_not_overwritten(embedded):
    words = ("cluster", *embedded[:2], "--method", "kmeans", "--n-clusters", "3", "--label", "region", "--out", "out")
    said = succeed(*words)
    assert "3 clusters, as asked" in said
    assert "all slices together: ARI" in said
    labels = [anndata.read_h5ad(Path("out", path.name)).obs["stofm_cluster"] for path in embedded[:2]]
    assert list(labels[0].cat.categories) == list(labels[1].cat.categories) == ["cluster 1", "cluster 2", "cluster 3"]
    assert Path("out", "slice_0.png").is_file()
    before = contents(Path("out"))
    assert "it exists already; expected a new name" in refused(*words)
    assert contents(Path("out")) == before
    succeed(*words, "--overwrite")


def test_cluster_refuses_what_it_cannot_use(embedded, of_another_model, simulated_paths):
    assert "embedded with model 000000000000" in refused("cluster", embedded[1], of_another_model, "--out", "out")
    assert "found no obsm['X_stofm']" in refused("cluster", simulated_paths[0], "--out", "out")
    assert "Run `stofm embed --keep-cell-embeddings`" in refused("cluster", embedded[0], "--of", "cell", "--out", "out")
    assert "found 'spectral'" in refused("cluster", embedded[0], "--method", "spectral", "--out", "out")
    assert not Path("out").exists()


def test_spots_are_deconvolved_with_intervals_and_scored(simulated_paths, tiny_run):
    table = anndata.read_h5ad(simulated_paths[2])
    table.obsm["true"] = pd.get_dummies(table.obs["cell_type"]).astype(float)  # a cell is a spot of one
    table.write_h5ad("spots.h5ad")
    said = succeed("deconvolve", "fit", simulated_paths[0], "--panel", "spots.h5ad", "--model", tiny_run / "model", "--out", "head",
                   "--features", "counts")  # fmt: skip
    assert "0 cells without a label left out" in said
    said = succeed("deconvolve", "predict", "spots.h5ad", "--head", "head", "--model", tiny_run / "model", "--out", "out", "--truth", "true")
    assert "RMSE" in said
    found = anndata.read_h5ad("out/spots.h5ad")
    shares, low, high = (found.obsm[f"stofm_proportions{end}"].to_numpy() for end in ("", "_low", "_high"))
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    assert ((low <= shares) & (shares <= high)).all()
    assert list(found.obs_names) == list(table.obs_names)


def test_deconvolve_refuses_what_it_cannot_use(simulated_paths, tiny_run):
    fit = ("deconvolve", "fit", simulated_paths[0], "--model", tiny_run / "model", "--out", "head")
    table = anndata.read_h5ad(simulated_paths[0])
    table.obs["missing"] = pd.Series([None] * table.n_obs, index=table.obs_names, dtype=object).astype("category")
    table.write_h5ad("unlabelled.h5ad")
    assert "labelled column 'kind' is absent" in refused(*fit, "--label", "kind")
    assert "found 0 cell types [] with 5 cells or more among 0 labelled cells" in refused(
        "deconvolve", "fit", "unlabelled.h5ad", "--label", "missing", "--model", tiny_run / "model", "--out", "head"
    )
    assert not Path("head").exists()
    line = refused("deconvolve", "predict", simulated_paths[0], "--head", "head", "--model", tiny_run / "model", "--out", "out")
    assert "Make it with `stofm deconvolve fit`" in line


def test_imputed_genes_are_flagged_and_measured_ones_kept(simulated_paths, tiny_run, narrow):
    succeed("impute", narrow, "--reference", simulated_paths[2], "--model", tiny_run / "model", "--out", "out")
    found, measured = anndata.read_h5ad("out/narrow.h5ad"), anndata.read_h5ad(narrow)
    own = set(measured.var_names)
    assert set(found.var_names[~found.var["is_imputed"]]) == own
    assert set(found.var_names[found.var["is_imputed"]]) == set(anndata.read_h5ad(simulated_paths[2]).var_names) - own
    assert found.var.loc[~found.var["is_imputed"], "imputation_confidence"].isna().all()
    assert found.var.loc[found.var["is_imputed"], "imputation_confidence"].notna().any()
    assert np.isfinite(found.obs["stofm_imputation_similarity"]).all()
    assert np.isfinite(found.X.data).all()


def test_impute_refuses_what_it_cannot_use(simulated_paths, tiny_run):
    words = ("impute", simulated_paths[0], "--model", tiny_run / "model", "--out", "out", "--reference")
    assert "measures every gene asked for" in refused(*words, simulated_paths[0])
    assert "found no gene 'NOGENE'" in refused(*words, simulated_paths[2], "--gene", "NOGENE")
    assert not Path("out").exists()


def test_an_index_is_built_and_queried_by_cells_and_by_region(embedded):
    assert "recall@10 1.000 of exact search" in succeed("index", "build", *embedded, "--out", "index")
    succeed("index", "query", embedded[0], "--index", "index", "--rows", "0,7", "-k", "3", "--out", "cells.csv")
    hits = pd.read_csv("cells.csv")
    first = hits[hits["rank"] == 1]
    assert first["query_row"].tolist() == [0, 7]
    assert first["row"].tolist() == [0, 7]
    assert set(first["slice"]) == {"slice_0"}
    succeed("index", "query", embedded[0], "--index", "index", "--where", "region=region_0", "--region", "--other-slices", "--out", "region.csv")
    pieces = pd.read_csv("region.csv")
    assert "slice_0" not in set(pieces["slice"])
    assert pieces["similarity"].is_monotonic_decreasing
    assert "it exists already" in refused("index", "build", *embedded, "--out", "index")


def test_an_index_of_another_model_is_refused(embedded, of_another_model):
    succeed("index", "build", embedded[0], "--out", "index")
    assert "made of model" in refused("index", "query", of_another_model, "--index", "index", "--out", "hits.csv")
    assert "embedded with model 000000000000" in refused("index", "build", embedded[1], of_another_model, "--out", "other")
    assert "found no '='" in refused("index", "query", embedded[0], "--index", "index", "--where", "region", "--out", "hits.csv")
    assert not Path("hits.csv").exists()
    assert not Path("other").exists()
