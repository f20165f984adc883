"""Comparisons: what is hidden is hidden from the encoder too; every task gives a row per way; what is done is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from corpus.readers import read_slice
from corpus.slice import Slice, SliceSpec
from downstream.comparisons import CompareConfig, compare, ways_to_retrieve
from downstream.embedding import Embedder, load_embedder
from downstream.profiles import Profiles, shared_genes
from stofm.config import parse_config
from stofm.errors import DataError


@pytest.fixture(scope="module")
def embedder(tiny_run: Path) -> Embedder:
    return load_embedder(tiny_run / "model", device="cpu")


def read_two(paths: list[Path], *, spoil: bool) -> tuple[list[Slice], list[Profiles], np.ndarray]:
    """The two human slices, their profiles, and half of the genes they share; with `spoil`, all other counts of the first are made up."""
    slices = [read_slice(SliceSpec(path=str(paths[number]))) for number in (0, 2)]
    profiles = [Profiles(one.slice_id, one.counts, one.gene_names, one.gene_names, np.full(one.n_cells, "")) for one in slices]
    shown = shared_genes(profiles)[::2]
    if spoil:
        counts = slices[0].counts.toarray()
        is_hidden = ~np.isin(slices[0].gene_names, shown)
        counts[:, is_hidden] = np.random.default_rng(0).poisson(40, (len(counts), int(is_hidden.sum())))
        slices[0] = replace(slices[0], counts=type(slices[0].counts)(counts))
        profiles[0] = replace(profiles[0], counts=slices[0].counts)
    return slices, profiles, shown


def test_hidden_genes_do_not_reach_the_encoder(simulated_paths: list[Path], embedder: Embedder) -> None:
    """Whatever is put in their place, every way reads a cell from the same reference cells, with the same weights."""
    found = []
    for spoil in (False, True):
        slices, profiles, shown = read_two(simulated_paths, spoil=spoil)
        found.append(ways_to_retrieve(slices[0], slices[1], profiles, shown, embedder, 10))
    assert {"kNN, PCA", "kNN, cell encoder", "kNN, SToFM"} == set(found[0])
    for way, one in found[0].items():
        np.testing.assert_array_equal(one.weights.toarray(), found[1][way].weights.toarray(), err_msg=way)


def test_every_task_is_compared_and_what_is_done_is_kept(simulated_paths: list[Path], tiny_run: Path, tmp_path: Path) -> None:
    one, other = ({"path": str(simulated_paths[number])} for number in (0, 2))
    tasks = [
        {"task": "clustering", "name": "regions", "label": "region", "slices": [one, other], "settings": [{"method": "kmeans"}]},
        {"task": "imputation", "name": "genes", "query": one, "reference": other, "n_folds": 2},
        {"task": "deconvolution", "name": "shares", "spots": one, "reference": other},  # has no true shares
    ]
    config = parse_config(CompareConfig, {"model": str(tiny_run / "model"), "out": str(tmp_path / "out"), "tasks": tasks}, where="test")
    with pytest.raises(DataError, match=r"task 'shares': spots 'slice_0': found no table obsm\['proportions'\]"):
        compare(config)
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert table.groupby("name")["task"].count().to_dict() == {"genes": 4, "regions": 15}
    assert table.loc[table["task"] == "clustering", "ari"].between(-0.5, 1).all()
    assert table.loc[table["way"] == "gene mean", "spearman"].tolist() == [0.0]
    assert "### imputation" in (tmp_path / "out" / "table.md").read_text()
