"""Fitting a head, calibration included, to 100,000 cells.

Question: does it take under 30 s on two cores, linear and mlp?

    make bench      runs it fully and writes results/heads_cpu_<date>.md
"""

from __future__ import annotations

import os
import time
from functools import partial

import numpy as np
import pytest
import torch
from report import take_turns, write_report

from downstream.heads import LOCALITIES
from downstream.held_out import folds_of_groups, judge_by_held_out
from downstream.probes import ProbeConfig, fit_probe
from stofm.fields import EMBEDDING_DIM

N_CELLS, N_CLASSES, SECONDS = 100_000, 16, 30.0


def slice_like(n: int, *, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of overlapping classes of unequal size, their labels, and 20 blocks."""
    rng = np.random.default_rng(seed)
    y = rng.choice(N_CLASSES, n, p=np.arange(1, N_CLASSES + 1) / np.arange(1, N_CLASSES + 1).sum())
    mix = np.eye(EMBEDDING_DIM) + rng.normal(size=(EMBEDDING_DIM, EMBEDDING_DIM)) / 32
    x = (np.random.default_rng(99).normal(size=(N_CLASSES, EMBEDDING_DIM))[y] / 8 + rng.normal(size=(n, EMBEDDING_DIM))) @ mix
    return x.astype(np.float32), np.array([f"class_{number}" for number in range(N_CLASSES)])[y], np.arange(n) * 20 // n


def fit_and_calibrate(kind: str, n: int) -> float:
    """Fit and calibrate as `fit_head` does; returns the accuracy on further cells."""
    features, labels, blocks = slice_like(n, seed=0)
    config = ProbeConfig(kind=kind)  # type: ignore[arg-type]
    probe = fit_probe([(features, labels)], config, [blocks], localities=LOCALITIES["cell_type"])
    calibration, _ = judge_by_held_out(probe, [(features, labels)], [blocks], folds_of_groups([blocks], 3, seed=0))
    assert calibration is not None
    unseen, true, _ = slice_like(2000, seed=1)
    return float((probe.classes[probe.predict_proba(unseen).argmax(axis=1)] == true).mean())


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_small_fit_learns(kind: str) -> None:
    assert fit_and_calibrate(kind, 2000) > 3 / N_CLASSES


@pytest.mark.slow
def test_a_large_fit_takes_seconds() -> None:
    lines = [
        "# Fitting heads",
        "",
        f"Question: how long does fitting and calibrating a head (four fits) on {N_CELLS:,} cells of {N_CLASSES} classes take, made-up embeddings?",
        "",
        "| head | wall seconds, median of 3 |",
        "|---|---|",
    ]
    medians = {}
    torch.set_num_threads(os.cpu_count() or 1)
    for kind in ("linear", "mlp"):
        rounds = take_turns({kind: partial(fit_and_calibrate, kind, N_CELLS)}, 3, clock=time.perf_counter)
        medians[kind] = float(np.median(rounds[kind]))
        lines.append(f"| {kind} | {medians[kind]:.1f} |")
    write_report("heads", [*lines, "", f"Reading: {SECONDS:g} s are asked."], work={"cells": N_CELLS}, packages=("numpy", "scikit-learn", "torch"))
    assert all(seconds < SECONDS for seconds in medians.values()), medians
