"""What a build takes: time of a rebuild that finds nothing to do, and memory of a slice of two million cells.

Question: does a rebuild of a finished corpus of 2,000 slices, every input hashed again, take at most 60 s? Does a slice of
2 million cells go through every step in at most 8 GB per process?

    make bench      runs it fully and writes results/build_cpu_<date>.md
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from report import write_report
from scipy.sparse import csr_matrix, vstack

import corpus.tasks
from corpus.build import CorpusConfig, build_corpus
from corpus.child import Outcome, run_in_child
from corpus.gene_ids import load_gene_tables
from corpus.slice import SliceSpec
from corpus.tasks import TaskConfig

SPACING_UM, BLOCK = 10.0, 50_000
Peaks = dict[str, int]  # most memory of a step's process, bytes


@dataclass(frozen=True)
class Size:
    """How much work one run is."""

    n_slices: int
    n_cells_of_many: int
    n_cells_of_one: int
    n_genes: int


FULLY = Size(n_slices=2000, n_cells_of_many=30, n_cells_of_one=2_000_000, n_genes=400)
TINY = Size(n_slices=4, n_cells_of_many=30, n_cells_of_one=3000, n_genes=60)


def write_slice(path: Path, n_cells: int, n_genes: int, seed: int) -> SliceSpec:
    """A slice of random counts, a quarter of its genes in every cell, as the file of an imaging run would be."""
    rng = np.random.default_rng(seed)
    blocks = []
    for start in range(0, n_cells, BLOCK):
        is_there = rng.random((min(BLOCK, n_cells - start), n_genes), dtype=np.float32) < 0.25
        is_there[:, start % n_genes] = True
        block = csr_matrix(is_there, dtype=np.float32)
        block.data[:] = rng.geometric(0.6, block.nnz)
        blocks.append(block)
    symbols = sorted(load_gene_tables().ensembl_of_symbol["human"])[:: 40_000 // n_genes // 2][:n_genes]
    side = int(np.ceil(n_cells**0.5))
    table = anndata.AnnData(vstack(blocks, format="csr"), obs=pd.DataFrame(index=np.arange(n_cells).astype(str)), var=pd.DataFrame(index=symbols))
    table.obsm["spatial"] = np.stack(np.divmod(np.arange(n_cells), side), 1) * SPACING_UM + rng.normal(0, 2, (n_cells, 2))
    table.uns["spatial_unit"] = "um"
    table.write_h5ad(path)
    return SliceSpec(path=str(path), species="human")


def corpus_of(specs: list[SliceSpec], out: Path, **tasks: object) -> CorpusConfig:
    return CorpusConfig(out=str(out), slices=specs, duplicates="keep", tasks=TaskConfig(reserve_gb=0, **tasks))


@contextmanager
def peaks() -> Iterator[Peaks]:
    """Note the most memory of each kind of step while the block runs."""
    found: Peaks = {}

    def noting(work, **limits) -> Outcome:
        outcome = run_in_child(work, **limits)
        name = work.function.__name__
        found[name] = max(found.get(name, 0), outcome.peak_bytes)
        return outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus.tasks, "run_in_child", noting)
        yield found


def seconds_to_do_nothing(folder: Path, size: Size, n_rounds: int) -> list[float]:
    """Build a corpus of many small slices; return the seconds of builds that find it finished."""
    (folder / "many").mkdir(parents=True, exist_ok=True)
    paths = [folder / "many" / f"slice_{number}.h5ad" for number in range(size.n_slices)]
    specs = [SliceSpec(path=str(path), species="human") if path.is_file() else write_slice(path, size.n_cells_of_many, size.n_genes, number)
             for number, path in enumerate(paths)]  # fmt: skip
    config = corpus_of(specs, folder / "corpus")
    first = build_corpus(config).corpus_id
    seconds = []
    for _ in range(n_rounds):
        began = time.perf_counter()
        assert build_corpus(config).corpus_id == first
        seconds.append(time.perf_counter() - began)
    return seconds


def peaks_of_a_large_slice(folder: Path, size: Size, memory_gb: float) -> Peaks:
    """Build a corpus of one large slice with this much memory for a task; return what each step took."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = write_slice(folder / "large.h5ad", size.n_cells_of_one, size.n_genes, seed=0)
    with peaks() as found:
        corpus = build_corpus(corpus_of([spec], folder / "corpus", n_workers=1, memory_gb=memory_gb))
    assert corpus.manifest["slices"][0]["n_cells"] == size.n_cells_of_one
    return found


def test_bench_runs_tiny(tmp_path: Path) -> None:
    assert len(seconds_to_do_nothing(tmp_path, TINY, 2)) == 2
    assert {"make_truth", "make_vocabulary", "make_tokens", "make_shard"} <= set(peaks_of_a_large_slice(tmp_path / "one", TINY, 1.0))


@pytest.mark.slow
def test_a_rebuild_and_a_large_slice_stay_within_their_bounds(tmp_path: Path) -> None:
    found = peaks_of_a_large_slice(tmp_path / "one", FULLY, 8.0)
    seconds = seconds_to_do_nothing(tmp_path, FULLY, 3)
    lines = [
        "# What a build takes",
        "",
        "Question: does a rebuild of 2,000 slices that finds nothing to do, every input hashed again, take at most 60 s, and a slice of 2 million",
        "cells at most 8 GB in every step's process?",
        "",
        f"Rebuild of {FULLY.n_slices} slices: {np.median(seconds):.1f} s (median of {len(seconds)}, {min(seconds):.1f} to {max(seconds):.1f}).",
        f"Slice of {FULLY.n_cells_of_one:,} cells, {FULLY.n_genes} genes, about a quarter of them in every cell:",
        "",
        "| step | most memory, GB |",
        "|---|---|",
        *(f"| {name} | {peak / 1e9:.2f} |" for name, peak in found.items()),
        "",
        "Reading: what a rebuild does is read every input once and three small files per slice; large inputs add the time to read them.",
    ]
    write_report("build", lines, work=FULLY, packages=("anndata", "zarr", "numpy", "scipy"))
    assert np.median(seconds) <= 60
    assert max(found.values()) <= 8e9
