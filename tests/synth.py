"""Small made-up slices, tables and sub-slice records with known contents, and the motions that must not matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_matrix

from corpus.build import CorpusConfig
from corpus.scales import ScaleConfig
from corpus.slice import Slice, SliceSpec
from corpus.sub_slices import SubSliceConfig
from corpus.tasks import TaskConfig
from corpus.virtual_cells import VirtualCellConfig
from stofm.batch import SubSliceBatch
from stofm.fields import (
    CELL_EMBEDDINGS,
    COORDS_UM,
    VIRTUAL_COORDS_UM,
    VIRTUAL_EMBEDDINGS,
    VIRTUAL_OF_CELL,
    VIRTUAL_SIZES,
)

Arrays = dict[str, np.ndarray]
TINY_SCALES = ScaleConfig(sub_slices=SubSliceConfig(n_cells=150), virtual_cells=VirtualCellConfig(cells_each=40))


def corpus_config(paths: list[Path], out: Path | str) -> CorpusConfig:
    """A corpus of these files, in sub-slices of 150 cells, built by one worker."""
    slices = [SliceSpec(path=str(path)) for path in paths]
    return CorpusConfig(out=str(out), slices=slices, scales=TINY_SCALES, tasks=TaskConfig(n_workers=1))


def slice_of_counts(counts, gene_names, *, ensembl_ids=None, species="human", **more) -> Slice:
    """A valid slice with these counts, its cells 10 um apart."""
    counts = csr_matrix(np.asarray(counts, dtype=np.float32))
    coords = np.stack([np.arange(counts.shape[0]) * 10.0, np.zeros(counts.shape[0])], axis=1)
    ids = np.array(ensembl_ids if ensembl_ids is not None else [""] * len(gene_names), dtype=str)
    return Slice("made_up", counts, np.array(gene_names, dtype=str), ids, coords, species, **more)


def random_cells(seed: int, n_cells: int, n_virtual: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places (n, 2) on a jittered grid 10 um apart, float16 unit embeddings (n, 256), virtual cell of each (n,)."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(n_cells**0.5))
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)[:n_cells] * 10.0
    embeddings = rng.normal(size=(n_cells, 256))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    of_cell = np.concatenate([np.arange(n_virtual), rng.integers(0, max(n_virtual, 1), n_cells)])[:n_cells]
    return places + rng.normal(0, 2.0, places.shape), embeddings.astype(np.float16), of_cell


def record_of(coords: np.ndarray, embeddings: np.ndarray, of_cell: np.ndarray, *, n_cells: int | None = None, n_virtual: int = 3) -> Arrays:
    """The record of a sub-slice of the first `n_cells` cells of a slice, its virtual cells the means over all cells."""
    n_cells = len(coords) if n_cells is None else n_cells
    members = [np.flatnonzero(of_cell == v) for v in range(n_virtual)]
    return {
        COORDS_UM: coords[:n_cells].astype(np.float32),
        CELL_EMBEDDINGS: embeddings[:n_cells],
        VIRTUAL_OF_CELL: of_cell[:n_cells].astype(np.uint16),
        VIRTUAL_COORDS_UM: np.array([coords[rows].mean(axis=0) for rows in members], np.float32).reshape(-1, 2),
        VIRTUAL_EMBEDDINGS: np.array([embeddings[rows].astype(np.float64).mean(axis=0) for rows in members], np.float32).reshape(-1, 256),
        VIRTUAL_SIZES: np.array([len(rows) for rows in members], np.uint32),
    }


def random_record(seed: int, n_cells: int = 40, *, n_virtual: int = 3, n_outside: int = 20) -> Arrays:
    """The record of a sub-slice of `n_cells` cells in a slice that has `n_outside` more."""
    return record_of(*random_cells(seed, n_cells + n_outside, n_virtual), n_cells=n_cells, n_virtual=n_virtual)


def pairs_of_tokens(batch: SubSliceBatch) -> torch.Tensor:
    """(P, 3), sub-slice and two tokens of every ordered pair of a batch that holds no padding."""
    is_there = ~batch.is_padding
    return (is_there[:, :, None] & is_there[:, None, :]).nonzero()


def turned(coords: np.ndarray, degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return coords @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).T


def spot_grid(n_rows: int, n_columns: int) -> np.ndarray:
    """Places of a Visium array, 100 um apart; for an odd number of rows its long axis is that of the rows."""
    row, column = np.divmod(np.arange(n_rows * n_columns), n_columns)
    return np.stack([column * 100.0 + row % 2 * 50.0, row * 100.0 * 3**0.5 / 2], axis=1)


MOTIONS = {
    "rotation": lambda coords: turned(coords, 37.0),
    "quarter turn": lambda coords: turned(coords, 90.0),
    "shift": lambda coords: coords + np.array([123.4, -567.8]),
    "reflection": lambda coords: coords * np.array([-1.0, 1.0]),
}


def random_counts(seed: int, n_cells: int, n_genes: int) -> csr_matrix:
    """Counts of a shallow panel, two in five detected; hardly two cells detect the same genes."""
    rng = np.random.default_rng(seed)
    rates = rng.gamma(1.0, 0.7, n_genes)
    return csr_matrix(rng.poisson(rates, (n_cells, n_genes)).astype(np.float32))
