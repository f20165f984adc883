"""Embedded and annotated slices without a model: the embedding says the truth, with noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from anndata import AnnData

from corpus.simulate import SimulationConfig, simulate_slices
from downstream.embedding import write_table
from downstream.heads import HeadConfig, fit_head
from downstream.predict import predict_head
from downstream.probes import ProbeConfig

TASKS = ("region", "cell_type")


def embedded_by_truth(table: AnnData, *, noise: float = 1.0) -> AnnData:
    """Give a simulated slice the columns that `stofm embed` adds; two cells have none, for the reasons that occur."""
    rng = np.random.default_rng(0)
    codes = np.column_stack([table.obs[task].cat.codes for task in TASKS])
    directions = [rng.normal(size=(column.max() + 1, 256)) for column in codes.T]
    features = sum(direction[column] for direction, column in zip(directions, codes.T, strict=True)) + noise * rng.normal(size=(table.n_obs, 256)) * 4
    features[:2] = np.nan
    table.obsm["X_stofm"] = features.astype(np.float32)
    table.obs["stofm_status"] = np.where(np.isnan(features[:, 0]), "no gene of the vocabulary", "embedded")
    table.uns["stofm"] = {"weights_sha256": "ab" * 32, "vocabulary_sha256": "cd" * 32, "gene_tables": "made up", "scales": '{"scheme": "tissue"}',
                          "slice": '{"spatial_key": "spatial"}', "um_per_unit": 1.0, "n_embedded": table.n_obs - 2, "stofm_version": "0"}  # fmt: skip
    return table


def write_annotated(path: Path, *, n_cells: int = 600) -> Path:
    """Write a slice with true and predicted regions and cell types and a name that tries to break a page."""
    first, second = (embedded_by_truth(one) for one in simulate_slices(SimulationConfig(n_slices=2, n_cells=n_cells, panel_sizes=[40])))
    second.obs["region"] = second.obs["region"].cat.rename_categories({"region_0": "</script><b>&"})
    first.obs["region"] = first.obs["region"].cat.rename_categories({"region_0": "</script><b>&"})
    second.obs["depth"] = np.asarray(second.X.sum(axis=1)).ravel()
    for task in TASKS:
        head = fit_head({"first": first}, task, label=task, config=HeadConfig(probe=ProbeConfig(l2=1.0)))  # type: ignore[arg-type]
        predict_head(head, second, "second")
    return write_table(second, path)
