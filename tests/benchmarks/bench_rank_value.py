"""Rank-value encoding from CSR against the published way: a loop over the cells of a densified slice.

Question: how many times faster are the same tokens, on one thread and on two, and what memory do they take?

    make bench      runs it fully and writes results/rank_value_cpu_<date>.md
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from report import ratio, take_turns, timing_rows, write_report
from scipy.sparse import csr_matrix, vstack

from corpus.rank_value import rank_value_encode
from corpus.slice import FloatArray

LOOP, ONE, TWO = "loop over densified rows", "from CSR, one thread", "from CSR, two threads"
AT_LEAST = {300: 4.0, 18_000: 12.0}  # times as fast on one thread, by genes of the slice


@dataclass(frozen=True)
class Size:
    """How much work one run is."""

    n_cells: dict[int, int]
    n_expressed: dict[int, int]
    n_rounds: int


FULLY = Size(n_cells={300: 20_000, 18_000: 4_000}, n_expressed={300: 80, 18_000: 500}, n_rounds=7)
TINY = Size(n_cells={300: 40, 18_000: 20}, n_expressed={300: 80, 18_000: 500}, n_rounds=1)


def made_up_counts(n_cells: int, n_genes: int, n_expressed: int) -> csr_matrix:
    """Counts of cells that express about `n_expressed` genes, some genes far more than others."""
    rng = np.random.default_rng(0)
    rates = rng.lognormal(-1, 1.5, n_genes)
    for _ in range(30):
        rates *= n_expressed / (1 - np.exp(-rates)).sum()
    blocks = [rng.poisson(rates * rng.lognormal(0, 0.4, (min(500, n_cells - start), 1))).astype(np.uint16) for start in range(0, n_cells, 500)]
    return vstack([csr_matrix(block) for block in blocks], format="csr")


def encode_by_loop(counts: csr_matrix, medians: FloatArray, *, max_tokens: int = 2048) -> list[np.ndarray]:
    """Gene tokens cell by cell, from a dense matrix of the whole slice; ties in a stable order, so that tokens can be compared."""
    dense = counts.toarray().astype(np.float64)
    depths = dense.sum(axis=1)
    cells = []
    for row, depth in zip(dense, depths, strict=True):
        values = row / depth * 10_000 / medians
        expressed = np.nonzero(values)[0]
        cells.append(expressed[np.argsort(-values[expressed], kind="stable")][:max_tokens] + 2)
    return cells


def contestants(n_genes: int, size: Size) -> tuple[csr_matrix, dict[str, Callable[[], object]]]:
    """The slice, and the functions that encode it."""
    counts = made_up_counts(size.n_cells[n_genes], n_genes, size.n_expressed[n_genes])
    medians = np.random.default_rng(1).lognormal(0, 1, n_genes)
    of_csr = {name: lambda n=n_threads: rank_value_encode(counts, medians, max_tokens=2048, n_threads=n) for name, n_threads in ((ONE, 1), (TWO, 2))}
    return counts, {LOOP: lambda: encode_by_loop(counts, medians), **of_csr}


def peak_megabytes(function: Callable[[], object]) -> float:
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


@pytest.mark.parametrize("n_genes", AT_LEAST)
def test_bench_runs_tiny_and_both_ways_give_the_same_tokens(n_genes: int) -> None:
    counts, functions = contestants(n_genes, TINY)
    encoded = {name: function() for name, function in functions.items()}
    assert encoded[ONE].tokens.tolist() == encoded[TWO].tokens.tolist() == np.concatenate(encoded[LOOP]).tolist()
    assert len(take_turns(functions, TINY.n_rounds)) == len(functions)
    assert counts.shape == (TINY.n_cells[n_genes], n_genes)


@pytest.mark.slow
def test_encoding_from_csr_is_several_times_as_fast() -> None:
    lines = [
        "# Rank-value encoding from CSR",
        "",
        "Question: how many times faster than the published loop over the cells of a densified slice are the same tokens made from CSR?",
        "Processor time of all threads, and wall time for threads; ways take turns in one process. Ratio: the loop's median over that of the way.",
    ]
    found = {}
    for n_genes, least in AT_LEAST.items():
        counts, functions = contestants(n_genes, FULLY)
        assert np.concatenate(functions[LOOP]()).tolist() == functions[ONE]().tokens.tolist()
        of_processor, of_wall = take_turns(functions, FULLY.n_rounds), take_turns(functions, FULLY.n_rounds, clock=time.perf_counter)
        found[n_genes] = ratio(of_processor, LOOP, ONE), least
        lines += ["", f"{n_genes:,} genes, {counts.shape[0]:,} cells, {counts.nnz / counts.shape[0]:.0f} expressed genes a cell", ""]
        lines += ["| way | processor ms | least to most | ratio |", "|---|---|---|---|", *timing_rows(of_processor, slow=LOOP)]
        lines += ["", "| way | wall ms | least to most | ratio |", "|---|---|---|---|", *timing_rows(of_wall, slow=LOOP)]
        peaks = "; ".join(f"{name} {peak_megabytes(function):,.0f}" for name, function in functions.items())
        lines += ["", f"Peak memory, MB, results included: {peaks}."]
    reading = "; ".join(
        f"{n_genes:,} genes: {times:.1f} times as fast on one thread, at least {least:g} asked" for n_genes, (times, least) in found.items()
    )
    write_report("rank_value", [*lines, "", f"Reading: {reading}. Tokens were equal."], work=FULLY, packages=("numpy", "scipy"))
    assert all(times >= least for times, least in found.values()), found
