"""Every cell that goes into `stofm embed` comes back in its row: those that cannot be embedded as NaN, with the reason."""

from __future__ import annotations

import anndata
import numpy as np
import pytest

from corpus.readers import read_table
from corpus.slice import SliceSpec
from downstream.embedding import EmbedOptions, embed, load_embedder


@pytest.fixture(scope="module")
def embedder(tiny_run):
    return load_embedder(tiny_run / "model", device="cpu")


def test_cells_without_place_counts_or_known_gene_keep_their_rows(embedder, simulated_paths, tmp_path):
    table = anndata.read_h5ad(simulated_paths[2])
    counts = table.X.toarray()
    counts[5], counts[9, 1:], counts[9, 0] = 0, 0, 3
    table.X, table.obsm["spatial"][7] = counts, np.nan
    table.var_names = ["ENSG00000000001", *table.var_names[1:]]  # a gene that no vocabulary has
    table.write_h5ad(tmp_path / "gaps.h5ad")
    spec = SliceSpec(path=str(tmp_path / "gaps.h5ad"))
    back = embed(read_table(spec), embedder, spec, EmbedOptions(keep_cell_embeddings=True))
    assert back.obs["stofm_status"].iloc[[5, 7, 9]].tolist() == ["no counts", "no place", "no gene of the vocabulary"]
    is_gap = np.isin(np.arange(400), [5, 7, 9])
    assert set(back.obs["stofm_status"][~is_gap]) == {"embedded"}
    for key in ("X_stofm", "X_stofm_cell"):
        np.testing.assert_array_equal(np.isnan(back.obsm[key]).all(axis=1), is_gap)
        assert np.isfinite(back.obsm[key][~is_gap]).all()
    assert back.uns["stofm"]["n_embedded"] == 397


def test_sections_are_embedded_as_if_each_had_its_own_file(embedder, simulated_paths, tmp_path):
    table = anndata.read_h5ad(simulated_paths[0])
    table.obs["slab"] = np.array(["a", "b"])[np.arange(400) % 2]
    table.write_h5ad(tmp_path / "both.h5ad")
    spec = SliceSpec(path=str(tmp_path / "both.h5ad"), section_key="slab")
    both = embed(read_table(spec), embedder, spec)
    for number in range(2):
        table[number::2].copy().write_h5ad(tmp_path / "one.h5ad")
        alone = SliceSpec(path=str(tmp_path / "one.h5ad"))
        np.testing.assert_allclose(both.obsm["X_stofm"][number::2], embed(read_table(alone), embedder, alone).obsm["X_stofm"], atol=1e-5)
    first = embed(read_table(spec), embedder, spec.model_copy(update={"section": "a"}))
    assert first.obs["stofm_status"].value_counts().to_dict() == {"embedded": 200, "in another section": 200}
