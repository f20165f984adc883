"""`stofm embed` again and again: what stands is passed over, nothing is replaced unasked, bad slices do not keep good ones from it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial

import anndata
import numpy as np
import pytest
from cli import contents, refused, stofm, succeed
from scipy.sparse import csr_matrix

import downstream
from corpus import scales, virtual_cells
from corpus.cell_arrays import ArrayOnDisk
from corpus.readers import count_blocks, read_slice
from corpus.slice import SliceSpec
from downstream import memory
from downstream.embedding import EmbedOptions, embed, embed_slice, load_embedder
from stofm.errors import DataError


@pytest.fixture
def words(simulated_paths, tiny_run, tmp_path):
    """The command for one slice of its own folder."""
    shutil.copy(simulated_paths[0], tmp_path / "one.h5ad")
    return ["embed", tmp_path / "one.h5ad", "--model", tiny_run / "model", "--out", tmp_path / "out"]


def test_a_slice_that_is_embedded_already_is_passed_over(words, tmp_path):
    succeed(*words)
    before = contents(tmp_path / "out")
    assert "one: embedded already, from the same input with the same model and settings" in succeed(*words)
    assert contents(tmp_path / "out") == before


def test_an_embedding_of_something_else_is_replaced_only_when_asked(words, tmp_path):
    succeed(*words)
    before = contents(tmp_path / "out")
    table = anndata.read_h5ad(tmp_path / "one.h5ad")
    table[:300].copy().write_h5ad(tmp_path / "one.h5ad")
    assert "holds an embedding of another input_sha256" in refused(*words)
    assert "another keep_cell_embeddings" not in refused(*words)
    assert contents(tmp_path / "out") == before
    succeed(*words, "--overwrite", "--keep-cell-embeddings")
    assert anndata.read_h5ad(tmp_path / "out/one.h5ad").obsm["X_stofm_cell"].shape == (300, 256)
    assert "holds an embedding of another keep_cell_embeddings" in refused(*words)


def test_all_but_the_embedding_is_the_input_as_it_was(words, tmp_path):
    table = anndata.read_h5ad(tmp_path / "one.h5ad")
    table.layers["scaled"] = table.X.multiply(0.5).tocsr()
    table.uns["note"] = {"by": "me"}
    table.raw = table.copy()
    table.write_h5ad(tmp_path / "one.h5ad")
    succeed(*words)
    back = anndata.read_h5ad(tmp_path / "out/one.h5ad")
    assert back.uns.pop("stofm")["n_embedded"] == 400
    assert set(back.obsm) == {"spatial", "X_stofm"}
    assert back.obs.drop(columns="stofm_status").equals(table.obs)
    assert back.uns["note"] == {"by": "me"}
    assert (back.layers["scaled"] != table.layers["scaled"]).nnz == 0
    assert (back.raw.X != table.raw.X).nnz == 0


def test_a_bad_slice_among_good_ones_is_named_and_the_others_stand(words, simulated_paths, tmp_path):
    few = anndata.read_h5ad(simulated_paths[2])[:, :12].copy()
    few.write_h5ad(tmp_path / "few.h5ad")
    outcome = stofm("embed", tmp_path / "few.h5ad", *words[1:])
    assert outcome.code == 2
    first, last = outcome.stderr.splitlines()
    assert "slice 'few'" in first
    assert "12 genes with counts are in the model's vocabulary; expected at least 20" in first
    assert "1 of 2 slices were not embedded" in last
    assert [path.name for path in (tmp_path / "out").glob("*.h5ad")] == ["one.h5ad"]
    succeed("embed", tmp_path / "few.h5ad", *words[2:], "--min-genes", 5)


def test_seams_are_written_where_asked(words, tmp_path):
    assert "; seams " in succeed(*words, "--seams")
    summary = anndata.read_h5ad(tmp_path / "out/one.h5ad").uns["stofm"]["slice_embedding"]["one"]
    assert summary["seam_pairs"] > 20
    assert np.isfinite(summary["seam_score"])


def test_a_budget_below_need_is_refused_in_one_line(words):
    assert "expected at most 0.1, the memory allowed" in refused(*words, "--max-memory", "100MB")
    assert "--max-memory: found 'much'" in refused(*words, "--max-memory", "much")


def test_budget_and_batches_change_no_embedding(words, tmp_path, monkeypatch):
    succeed(*words)
    usual = anndata.read_h5ad(tmp_path / "out/one.h5ad").obsm["X_stofm"].astype(np.float64)
    for n_most in (1, 5):
        monkeypatch.setitem(memory.SUB_SLICES_PER_BATCH, "cpu", n_most)
        succeed(*words, "--overwrite", "--keep-cell-embeddings", "--max-memory", f"{4 + n_most}GB")
        other = anndata.read_h5ad(tmp_path / "out/one.h5ad").obsm["X_stofm"].astype(np.float64)
        cosine = (usual * other).sum(axis=1) / np.linalg.norm(usual, axis=1) / np.linalg.norm(other, axis=1)
        assert (1 - cosine).max() <= 1e-6
        shutil.rmtree(tmp_path / "out")
        (tmp_path / "out").mkdir()


def test_a_verified_folder_passes_and_a_changed_row_is_named(words, tiny_run, tmp_path):
    succeed(*words)
    verify = ["verify", tmp_path / "out", "--model", tiny_run / "model"]
    assert "one: 64 cells embedded again, all as written" in succeed(*verify)
    table = anndata.read_h5ad(tmp_path / "out/one.h5ad")
    table.obsm["X_stofm"][[7, 311]] = table.obsm["X_stofm"][[311, 7]]
    table.obsm["X_stofm"][5] = np.nan
    table.write_h5ad(tmp_path / "out/one.h5ad")
    line = refused(*verify)
    assert "slice 'one'" in line
    assert "3 rows differ from what the model says of them (5, 7, 311)" in line


def test_verify_wants_the_model_that_embedded(words, tiny_run, tmp_path):
    succeed(*words)
    table = anndata.read_h5ad(tmp_path / "out/one.h5ad")
    table.uns["stofm"]["weights_sha256"] = "0" * 64
    table.write_h5ad(tmp_path / "out/one.h5ad")
    assert "embedded with model 000000000000" in refused("verify", tmp_path / "out", "--model", tiny_run / "model")


def test_python_gives_what_the_command_line_gives(words, tiny_run, tmp_path):
    succeed(*words)
    written = anndata.read_h5ad(tmp_path / "out/one.h5ad")
    given = anndata.read_h5ad(tmp_path / "one.h5ad")
    assert downstream.embed(given, tiny_run / "model", device="cpu") is given
    np.testing.assert_array_equal(given.obsm["X_stofm"], written.obsm["X_stofm"])
    backed = anndata.read_h5ad(tmp_path / "one.h5ad", backed="r")
    downstream.embed(backed, tiny_run / "model", device="cpu", max_memory="20GB")
    np.testing.assert_array_equal(backed.obsm["X_stofm"], written.obsm["X_stofm"])
    backed.file.close()


def awkward(path):
    """A slice with a cell without place, one without counts, one whose only gene no vocabulary has, a control feature, and two sections."""
    table = anndata.read_h5ad(path)
    counts = table.X.toarray()
    counts[[17, 200]] = 0
    counts[200, 3] = 5
    table.X = csr_matrix(counts)
    table.var_names = ["Blank-1", *table.var_names[1:3], "nobodys_gene", *table.var_names[4:]]
    table.obsm["spatial"][5] = np.nan
    table.obs["part"] = np.where(np.arange(table.n_obs) % 3 == 0, "a", "b")
    return table


READ_BY = {"one slice": {}, "two sections": {"section_key": "part"}}


@pytest.mark.parametrize("reading", READ_BY.values(), ids=READ_BY.keys())
def test_arrays_on_disk_and_blocks_change_no_bit(reading, tiny_run, simulated_paths, tmp_path, monkeypatch):
    embedder, spec = load_embedder(tiny_run / "model", device="cpu"), SliceSpec(path="data", technology="anndata", **reading)
    options = EmbedOptions(keep_cell_embeddings=True, measure_seams=True)
    usual = embed(awkward(simulated_paths[0]), embedder, spec, options, input_sha256="0")
    monkeypatch.setattr(count_blocks, "ENTRIES_PER_BLOCK", 16 * 500)
    monkeypatch.setattr(scales, "CELLS_TAKEN", 30)
    found = embed(awkward(simulated_paths[0]), embedder, spec, options, input_sha256="0", scratch=partial(ArrayOnDisk, tmp_path))
    assert set(usual.obs["stofm_status"]) == {"embedded", "no place", "no counts", "no gene of the vocabulary"}
    assert found.obs["stofm_status"].tolist() == usual.obs["stofm_status"].tolist()
    for key in ("X_stofm", "X_stofm_cell"):
        np.testing.assert_array_equal(found.obsm[key].compute(), usual.obsm[key])
    np.testing.assert_equal(found.uns["stofm"], usual.uns["stofm"])
    assert list(tmp_path.iterdir()) == []


def test_clusters_found_on_a_share_of_the_cells_do_not_follow_row_order(tiny_run, simulated_paths, monkeypatch):
    monkeypatch.setattr(virtual_cells, "MOST_FITTED", 60)
    one = read_slice(SliceSpec(path=str(simulated_paths[0])))
    order = np.random.default_rng(0).permutation(one.n_cells)
    other = replace(one, counts=one.counts[order], coords_um=one.coords_um[order], labels={})
    embedder = load_embedder(tiny_run / "model", device="cpu")
    usual, permuted = (embed_slice(st_slice, embedder) for st_slice in (one, other))
    assert len(usual.summary["virtual_sizes"]) > 2
    assert permuted.summary["virtual_sizes"].tolist() == usual.summary["virtual_sizes"].tolist()
    np.testing.assert_allclose(permuted.cell_repr, usual.cell_repr[order], atol=1e-5)


@pytest.mark.parametrize("moment", ["downstream.embedding.represent_cells", "anndata.io.write_elem"])
def test_a_failure_leaves_nothing_beside_what_stood(moment, words, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise DataError("planted")

    monkeypatch.setattr(moment, fail)
    assert "planted" in refused(*words)
    assert {path.name for path in tmp_path.rglob("*")} <= {"one.h5ad", "out", "stofm.json"}


def test_a_table_that_is_refused_is_left_as_it_was(tiny_run, simulated_paths):
    table = anndata.read_h5ad(simulated_paths[0])
    table.X = csr_matrix(table.X.toarray() * 0.37)
    with pytest.raises(DataError, match="counts"):
        downstream.embed(table, tiny_run / "model", device="cpu")
    assert set(table.obsm) == {"spatial"}
    assert "stofm" not in table.uns
