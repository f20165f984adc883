"""Copies of a slice as they turn up in other collections: what of its cells and genes is left."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from scipy.sparse import csr_matrix

from corpus.truth import SliceTruth

Copy = tuple[csr_matrix, np.ndarray]  # counts, human ids
Rows = Callable[[SliceTruth, Generator], np.ndarray]


def all_cells(truth: SliceTruth, rng: Generator) -> np.ndarray:
    return np.arange(truth.counts.shape[0])


def shuffled(truth: SliceTruth, rng: Generator) -> np.ndarray:
    return rng.permutation(truth.counts.shape[0])


def crop(share: float) -> Rows:
    """The cells on one side of a line across the tissue."""

    def rows(truth: SliceTruth, rng: Generator) -> np.ndarray:
        angle = rng.uniform(0, 2 * np.pi)
        return np.argsort(truth.coords_um @ np.array([np.cos(angle), np.sin(angle)]))[: int(share * len(truth.coords_um))]

    return rows


def subsample(share: float) -> Rows:
    return lambda truth, rng: rng.permutation(truth.counts.shape[0])[: int(share * truth.counts.shape[0])]


COPIES: dict[str, tuple[Rows, float]] = {  # cells that are left, share of the genes that are left
    "whole, reordered": (shuffled, 1.0),
    "cropped to a half": (crop(0.5), 1.0),
    "cropped to a tenth": (crop(0.1), 1.0),
    "a tenth of the cells": (subsample(0.1), 1.0),
    "half the genes": (all_cells, 0.5),
    "a tenth of the genes": (all_cells, 0.1),
    "half the tissue and genes": (crop(0.5), 0.5),
    "a tenth of tissue and genes": (crop(0.1), 0.1),
}


def plant(truth: SliceTruth, kind: str, seed: int = 0) -> Copy:
    """Make a copy; genes without a count in it are left out, as most pipelines do."""
    rows, share_of_genes = COPIES[kind]
    rng = np.random.default_rng(seed)
    n_genes = len(truth.human_ids)
    columns = np.sort(rng.permutation(n_genes)[: int(share_of_genes * n_genes)])
    counts = csr_matrix(truth.counts[rows(truth, rng)][:, columns])
    is_detected = np.asarray(counts.sum(axis=0)).ravel() > 0
    return csr_matrix(counts[:, is_detected]), truth.human_ids[columns[is_detected]]
