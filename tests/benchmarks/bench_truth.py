"""The truth of a slice beside the file it usually comes in: bytes on disk, and CPU seconds to read it.

Question: how large is a truth beside the same table as gzip .h5ad (scanpy's usual `compression="gzip"`), and how much faster is
it read? On simulated slices of several panels, and on the real ones where they are.

    make bench      runs it fully and writes results/truth_cpu_<date>.md
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from report import ratio, take_turns, write_report
from scipy.sparse import csr_matrix

from corpus.gene_ids import load_gene_tables
from corpus.readers import read_slice
from corpus.slice import SliceSpec
from corpus.truth import SliceTruth, read_truth, truth_of, write_truth

LEAST_SIZE, LEAST_SPEED = 0.75, 3.0
H5AD, OURS = "gzip h5ad", "truth"
REAL = ["xenium_breast_rep1_pikachu", "merfish_mpoa_bp021", "slideseq_cerebellum", "dlpfc_151673"]


@dataclass(frozen=True)
class Size:
    """How much work one run is: cells, genes and expressed genes a cell of each simulated slice."""

    slices: tuple[tuple[int, int, int], ...]
    n_rounds: int


FULLY = Size(slices=((40_000, 300, 60), (40_000, 5_000, 600), (10_000, 18_000, 1_500)), n_rounds=5)
TINY = Size(slices=((300, 100, 20),), n_rounds=1)


def simulated(n_cells: int, n_genes: int, n_expressed: int) -> SliceTruth:
    """Counts with popular and rare genes and mostly ones and twos, as panels have them."""
    rng = np.random.default_rng(0)
    popularity = rng.lognormal(0, 1.2, n_genes)
    rate = np.minimum(popularity / popularity.sum() * n_expressed, 0.95)
    rows, columns = [], []
    for gene in range(n_genes):
        cells = np.flatnonzero(rng.random(n_cells) < rate[gene])
        rows.append(cells)
        columns.append(np.full(len(cells), gene))
    where = (np.concatenate(rows), np.concatenate(columns))
    counts = csr_matrix((1 + rng.geometric(0.6, len(where[0])), where), shape=(n_cells, n_genes), dtype=np.float32)
    names = np.array([f"ENSG{gene:011d}" for gene in range(n_genes)])
    labels = {"cell_type": rng.choice([f"type {number}" for number in range(15)], n_cells)}
    return SliceTruth("made_up", counts, names, names, rng.uniform(0, 1e4, (n_cells, 2)), labels, {}, np.arange(n_cells))


def real(folder: Path, name: str) -> SliceTruth:
    return truth_of(read_slice(SliceSpec(path=str(folder / f"{name}.h5ad"), um_per_unit=1.0)), load_gene_tables())[0]


def measure(folder: Path, truth: SliceTruth, n_rounds: int) -> tuple[float, float, dict[str, list[float]]]:
    """Size of the truth over that of the h5ad, how many times faster it is read, and the seconds of each round."""
    folder.mkdir(parents=True)
    labels = {name: pd.Categorical(values) for name, values in truth.labels.items()}
    table = anndata.AnnData(
        X=truth.counts.astype(np.float32), obs=pd.DataFrame(labels, index=[str(row) for row in range(truth.counts.shape[0])]),
        var=pd.DataFrame({"symbol": truth.symbols}, index=truth.human_ids), obsm={"spatial": truth.coords_um},
    )  # fmt: skip
    table.write_h5ad(folder / "slice.h5ad", compression="gzip")
    write_truth(folder / "cells.zarr.zip", truth)
    np.testing.assert_array_equal(read_truth(folder / "cells.zarr.zip").counts.data, anndata.read_h5ad(folder / "slice.h5ad").X.data)
    readers = {H5AD: lambda: anndata.read_h5ad(folder / "slice.h5ad"), OURS: lambda: read_truth(folder / "cells.zarr.zip")}
    seconds = take_turns(readers, n_rounds)
    return (folder / "cells.zarr.zip").stat().st_size / (folder / "slice.h5ad").stat().st_size, ratio(seconds, H5AD, OURS), seconds


def milliseconds(rounds: list[float]) -> str:
    return f"{np.median(rounds) * 1e3:,.0f} ({min(rounds) * 1e3:,.0f} to {max(rounds) * 1e3:,.0f})"


def test_bench_runs_tiny(tmp_path: Path) -> None:
    size, speed, _ = measure(tmp_path / "tiny", simulated(*TINY.slices[0]), TINY.n_rounds)
    assert size > 0
    assert speed > 0


@pytest.mark.slow
def test_truth_is_small_and_quick_to_read(tmp_path: Path) -> None:
    slices = {f"simulated, {n_cells} cells x {n_genes} genes": simulated(n_cells, n_genes, n) for n_cells, n_genes, n in FULLY.slices}
    shared = Path(os.environ.get("STOFM_SHARED", "../shared")) / "data"
    slices |= {name: real(shared, name) for name in REAL if (shared / f"{name}.h5ad").is_file()}
    found = {name: measure(tmp_path / str(number), truth, FULLY.n_rounds) for number, (name, truth) in enumerate(slices.items())}
    rows = [
        f"| {name} | {slices[name].counts.nnz:,} | {size:.2f} | {milliseconds(seconds[H5AD])} | {milliseconds(seconds[OURS])} | {speed:.1f} |"
        for name, (size, speed, seconds) in found.items()
    ]
    head = [
        "# The truth of a slice", "",
        "Question: how large is a truth beside the same table as gzip .h5ad, and how much faster is it read?",
        f"CPU milliseconds of this process, medians of {FULLY.n_rounds} rounds in turn, page cache warm. Simulated: "
        + ", ".join(f"{n_cells} x {n_genes} with {n} genes a cell" for n_cells, n_genes, n in FULLY.slices) + ".", "",
        "| slice | entries | size over h5ad | read h5ad, ms | read truth, ms | times faster |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    write_report("truth", [*head, *rows], work=FULLY, packages=["zarr", "anndata", "h5py", "numpy"])
    assert {name: size for name, (size, _, _) in found.items() if size > LEAST_SIZE} == {}
    assert {name: speed for name, (_, speed, _) in found.items() if speed < LEAST_SPEED} == {}
