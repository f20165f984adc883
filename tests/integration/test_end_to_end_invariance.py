"""From file to file: the way the tissue lies and the order of its rows change no cell's embedding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from cli import succeed, write_yaml
from synth import turned

from corpus.cell_order import content_keys
from corpus.simulate import SimulationConfig, simulate_slice
from stofm.checkpoint import load_model, save_model

MOVES = {
    "rotation": lambda coords: turned(coords, 33.7),
    "shift": lambda coords: coords + np.array([1e5, -1e5]),
    "reflection": lambda coords: coords * np.array([1.0, -1.0]),
    "all three": lambda coords: turned(coords, 211.3) * np.array([-1.0, 1.0]) + 1e5,
}


def hexagonal() -> anndata.AnnData:
    """A simulated slice whose cells became the spots of a regular array, 100 um apart, ties everywhere."""
    table = simulate_slice(SimulationConfig(n_cells=600, panel_sizes=[60]), 0)
    row, column = np.divmod(np.arange(600), 20)
    table.obsm["spatial"] = np.column_stack([column + 0.5 * (row % 2), row * 0.75**0.5]) * 100.0
    return table


def cropped(path: Path, n_cells: int, unit: str | None = None) -> anndata.AnnData:
    """The cells of a real slice nearest to its centre."""
    table = anndata.read_h5ad(path)
    radius = np.linalg.norm(table.obsm["spatial"] - np.median(table.obsm["spatial"], axis=0), axis=1)
    return table[np.sort(np.argsort(radius, kind="stable")[:n_cells])].copy()


SIMULATED = ["simulated", "hexagonal"]
REAL = {"starmap": ("starmap_mpfc_BZ5.h5ad", 0.0625), "dlpfc": ("dlpfc_151673.h5ad", 1.0)}


def keen(model: Path, out: Path) -> Path:
    """A copy of a model to which distances matter far more than a few steps of training make them."""
    found = load_model(model)
    with torch.no_grad():
        for weights in found.se2_transformer.pair_bias.mlp.parameters():
            weights.copy_(2 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)))
    texts = {name: (model / name).read_text() for name in ("gene_vocab.csv", "gene_tables.json", "scales.json", "README.md")}
    save_model(out, found.cell_encoder, found.se2_transformer, texts=texts, trained_on=found.meta.trained_on)
    return out


@pytest.fixture(scope="module")
def tiny_model(tiny_run, tmp_path_factory) -> Path:
    return keen(tiny_run / "model", tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def real_model(shared_data, tmp_path_factory) -> Path:
    """A model for the genes of the real slices."""
    here = tmp_path_factory.mktemp("real")
    slices = []
    for name, (file, um_per_unit) in REAL.items():
        cropped(shared_data / "data" / file, 300).write_h5ad(here / f"{name}.h5ad")
        slices.append({"path": str(here / f"{name}.h5ad"), "um_per_unit": um_per_unit})
    scales = {"sub_slices": {"n_cells": 300}, "rank_value": {"max_tokens": 64}}
    succeed("build", write_yaml(here / "build.yaml", {"out": str(here / "corpus"), "slices": slices, "scales": scales}))
    sizes = {"cell_encoder": {"n_layers": 1, "width": 32, "n_heads": 2, "ffn_dim": 32}, "se2_transformer": {"n_layers": 2, "n_neighbors": 6}}
    run = {"corpus": str(here / "corpus"), "out": str(here / "run"), "encoder_stage": None, "se2_stage": {"max_steps": 2}, **sizes}
    succeed("train", write_yaml(here / "train.yaml", run))
    return keen(here / "run/model", here / "model")


def moved(table: anndata.AnnData, move: Callable[[np.ndarray], np.ndarray]) -> anndata.AnnData:
    other = table.copy()
    other.obsm["spatial"] = move(np.asarray(table.obsm["spatial"], dtype=np.float64))
    return other


def cosine_distance(one: anndata.AnnData, other: anndata.AnnData) -> np.ndarray:
    """Per cell, (n_cells,) float64; 0 where neither is embedded."""
    x, y = (np.nan_to_num(table.obsm["X_stofm"].astype(np.float64)) for table in (one, other))
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return np.where(lengths > 0, 1 - (x * y).sum(axis=1) / np.where(lengths > 0, lengths, 1), 0.0)


@pytest.fixture(scope="module", params=[*SIMULATED, *REAL])
def embedded(request, simulated_paths, tiny_model, tmp_path_factory) -> dict[str, anndata.AnnData]:
    """What comes back of a slice as it is filed, moved, stretched, and with its rows permuted."""
    model, um_per_unit, here = tiny_model, 1.0, tmp_path_factory.mktemp(request.param)
    if request.param == "simulated":
        table = anndata.read_h5ad(simulated_paths[0])
    elif request.param == "hexagonal":
        table = hexagonal()
    else:
        file, um_per_unit = REAL[request.param]
        model, table = request.getfixturevalue("real_model"), cropped(request.getfixturevalue("shared_data") / "data" / file, 1000)
    tables = {"as filed": table} | {name: moved(table, move) for name, move in MOVES.items()}
    tables |= {"stretched": moved(table, lambda xy: xy * 1.5), "permuted": table[permutation(table)].copy()}
    paths = {name: here / f"{name.replace(' ', '_')}.h5ad" for name in tables}
    for name, one in tables.items():
        one.write_h5ad(paths[name])
    succeed("embed", *paths.values(), "--model", model, "--out", here / "out", "--um-per-unit", um_per_unit)
    return {name: anndata.read_h5ad(here / "out" / path.name) for name, path in paths.items()}


def permutation(table: anndata.AnnData) -> np.ndarray:
    return np.random.default_rng(0).permutation(table.n_obs)


def test_turning_shifting_or_mirroring_a_slice_leaves_every_embedding(embedded):
    usual = embedded["as filed"]
    n_changed = {name: int((cosine_distance(usual, embedded[name]) > 1e-5).sum()) for name in MOVES}
    # Only cells that agree in place along a cut and in content may change sides: spots of equal counts.
    _, n_alike = np.unique(content_keys(usual.X.tocsr()), return_counts=True)
    n_ties = int(n_alike[n_alike > 1].sum())
    print(f"cells whose embedding changed, by move: {n_changed}; cells with a twin: {n_ties} of {usual.n_obs}")
    assert max(n_changed.values()) == 0
    assert (cosine_distance(usual, embedded["stretched"]) > 1e-5).mean() > 0.5, "distances do enter"


def test_permuting_the_rows_permutes_the_embeddings_and_nothing_else(embedded):
    usual, permuted = embedded["as filed"], embedded["permuted"]
    usual = usual[permutation(usual)]
    np.testing.assert_allclose(permuted.obsm["X_stofm"], usual.obsm["X_stofm"], atol=1e-6, rtol=0)
    assert permuted.obs.equals(usual.obs)
    assert permuted.var.equals(usual.var)
    assert (permuted.X != usual.X).nnz == 0
    np.testing.assert_array_equal(permuted.obsm["spatial"], usual.obsm["spatial"])
    receipts = [one.uns["stofm"] for one in (permuted, usual)]
    for key in receipts[0].keys() - {"input_sha256", "x_stofm_sha256", "slice_embedding"}:
        assert receipts[0][key] == receipts[1][key]
    summaries = [next(iter(one["slice_embedding"].values())) for one in receipts]
    for key in summaries[0]:
        np.testing.assert_allclose(summaries[0][key], summaries[1][key], atol=1e-5)
