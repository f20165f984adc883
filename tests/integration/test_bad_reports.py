"""`stofm report` of what it cannot show, and into what it must not touch."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
from annotated import embedded_by_truth
from cli import refused

from corpus.simulate import SimulationConfig, simulate_slices
from stofm.durable import claim_folder


@pytest.fixture(scope="module")
def embedded_slice(tmp_path_factory):
    path = tmp_path_factory.mktemp("embedded") / "slice.h5ad"
    embedded_by_truth(simulate_slices(SimulationConfig(n_slices=1, n_cells=60, panel_sizes=[20]))[0]).write_h5ad(path)
    return path


def test_a_path_that_holds_nothing_known_is_named(tmp_path):
    assert "no such file or folder; expected an embedded slice" in refused("report", tmp_path / "none")
    claim_folder(tmp_path / "model", "stofm-model/1")
    assert "a folder of kind 'stofm-model/1'" in refused("report", tmp_path / "model")


def test_a_slice_without_an_embedding_is_sent_to_embed(tmp_path):
    anndata.AnnData(np.ones((3, 2), np.float32), obsm={"spatial": np.eye(3, 2)}).write_h5ad(tmp_path / "plain.h5ad")
    assert "Run `stofm embed` on it first" in refused("report", tmp_path / "plain.h5ad")


def test_a_gene_that_the_slice_has_not_is_named(embedded_slice, tmp_path):
    assert "found no gene 'NONE'" in refused("report", embedded_slice, "--gene", "NONE", "--out", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_file_that_is_no_report_is_left_alone(embedded_slice, tmp_path):
    (tmp_path / "thesis.html").write_text("my thesis")
    assert "found a file that is no report" in refused("report", embedded_slice, "--out", tmp_path / "thesis.html")
    assert (tmp_path / "thesis.html").read_text() == "my thesis"
    assert "found a folder; expected a file" in refused("report", embedded_slice, "--out", tmp_path)


def test_a_run_without_a_logged_step_is_named(tmp_path):
    claim_folder(tmp_path / "run", "stofm-run/1")
    assert "found no logged step" in refused("report", tmp_path / "run", "--out", tmp_path / "r.html")
