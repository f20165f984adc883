"""Micro and macro scale of a large slice against the published way: scanpy's neighbours, Leiden and dense matrices.

Question: how many times faster are the neighbour pairs of a sub-slice, and all scales of 100,000 cells, clustering included? And against
the published way at its best, with exact neighbours and two rounds of Leiden instead of rounds until nothing improves?

    make bench      runs it fully and writes results/graph_cpu_<date>.md
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from anndata import AnnData
from report import ratio, take_turns, timing_rows, write_report
from scipy.sparse import csr_matrix
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsTransformer

from corpus.cell_order import tissue_order
from corpus.slice import FloatArray, IntArray
from corpus.sub_slices import SubSliceConfig, cut_sub_slices
from corpus.virtual_cells import VirtualCellConfig, make_virtual_cells
from stofm.batch import SubSliceBatch
from stofm.compiled import keep_umap_compiled
from stofm.geometry import find_pairs

PUBLISHED, OURS = "scanpy, Leiden, dense matrices", "pairs, k-means"
AT_ITS_BEST = "scanpy with exact neighbours, two rounds of Leiden, dense matrices"
MOST_EXACT = 8192  # points whose neighbours scanpy finds by all distances; those of more it finds approximately, by pynndescent
N_NEIGHBORS = 50  # of both ways
AT_LEAST = {"sub-slice": 8.0, "slice": 5.0}


@dataclass(frozen=True)
class Size:
    """How much work one run is."""

    n_cells: int
    cells_each: int
    n_sub_slice_rounds: int
    n_slice_rounds: int


FULLY = Size(n_cells=100_000, cells_each=1000, n_sub_slice_rounds=15, n_slice_rounds=3)
TINY = Size(n_cells=300, cells_each=100, n_sub_slice_rounds=1, n_slice_rounds=1)


@dataclass(frozen=True, eq=False)
class Tissue:
    """Cells in 12 zones that differ in their mixture of 10 types."""

    coords_um: FloatArray
    embeddings: FloatArray
    keys: np.ndarray


def made_up_tissue(n_cells: int) -> Tissue:
    rng = np.random.default_rng(0)
    side = int(np.ceil(n_cells**0.5))
    coords = np.stack(np.divmod(np.arange(n_cells), side), axis=1) * 10.0 + rng.normal(0, 2, (n_cells, 2))
    zone = cdist(coords, rng.uniform(0, side * 10, (12, 2))).argmin(axis=1)
    shares = rng.dirichlet(np.full(10, 0.5), 12).cumsum(axis=1)
    cell_type = (rng.random((n_cells, 1)) > shares[zone]).sum(axis=1).clip(max=9)
    embeddings = rng.normal(size=(10, 256))[cell_type] + 0.3 * rng.normal(size=(12, 256))[zone] + 0.8 * rng.normal(size=(n_cells, 256))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return Tissue(coords, embeddings.astype(np.float32), rng.integers(0, 2**64, n_cells, dtype=np.uint64))


class ExactNeighbors(KNeighborsTransformer):
    """Neighbours as the kind of sparse matrix that scanpy 1.11 reads."""

    def fit_transform(self, X: FloatArray, y: None = None) -> csr_matrix:
        return csr_matrix(super().fit_transform(X))


def scanpy_graph(points: FloatArray, n_neighbors: int, *, is_exact: bool = False) -> AnnData:
    """Neighbours by the transformer and settings that scanpy chooses itself, or by a k-d tree."""
    import scanpy

    keep_umap_compiled()
    table = AnnData(np.zeros((len(points), 1), np.float32), obsm={"points": points})
    if is_exact or len(points) < MOST_EXACT:
        transformer = ExactNeighbors(n_neighbors=n_neighbors - 1, algorithm="kd_tree" if is_exact else "brute")
    else:
        transformer = approximate_neighbors(len(points), n_neighbors)
    scanpy.pp.neighbors(table, use_rep="points", transformer=transformer)
    return table


def approximate_neighbors(n: int, n_neighbors: int) -> object:
    from pynndescent import PyNNDescentTransformer

    class ApproximateNeighbors(PyNNDescentTransformer):
        def fit_transform(self, X: FloatArray, y: None = None) -> csr_matrix:
            return csr_matrix(super().fit_transform(X))

    settings = {"n_trees": min(64, 5 + round(n**0.5 / 20)), "n_iters": max(5, round(np.log2(n)))}
    return ApproximateNeighbors(n_neighbors=n_neighbors, random_state=0, n_jobs=1, **settings)


def published_sub_slice(coords: FloatArray, virtual_coords: FloatArray) -> FloatArray:
    """Distances of the tokens of a sub-slice, (1 + V + n, 1 + V + n)."""
    tokens = np.concatenate([np.zeros((1, 2)), virtual_coords, coords])
    distances = scanpy_graph(tokens, N_NEIGHBORS).obsp["distances"].toarray()
    distances[distances == 0] = 100.0
    distances = np.minimum(distances, distances.T)
    distances[1 : 1 + len(virtual_coords)] = cdist(virtual_coords, tokens)
    distances[:, 1 : 1 + len(virtual_coords)] = distances[1 : 1 + len(virtual_coords)].T
    distances[0], distances[:, 0] = 0.0, 0.0
    np.fill_diagonal(distances, 0.0)
    return distances


def published_slice(tissue: Tissue, sub_slices: list[IntArray], *, at_its_best: bool) -> None:
    """Virtual cells by Leiden, then the distances of every sub-slice."""
    import scanpy

    places = tissue.coords_um - tissue.coords_um.mean(axis=0)
    components = PCA(2).fit_transform(tissue.embeddings)
    feature = 0.2 * places / np.linalg.norm(places, axis=1).max() + 0.8 * components / np.linalg.norm(components, axis=1).max()
    table = scanpy_graph(feature, 10, is_exact=at_its_best)
    scanpy.tl.leiden(table, resolution=1, flavor="igraph", n_iterations=2 if at_its_best else -1, directed=False)
    clusters = table.obs["leiden"].cat.codes.to_numpy()
    virtual = np.array([places[clusters == cluster].mean(axis=0) for cluster in range(clusters.max() + 1)])
    for rows in sub_slices:
        published_sub_slice(places[rows], virtual)


def our_sub_slice(coords: FloatArray, virtual_coords: FloatArray) -> object:
    """Pairs of a sub-slice; like the published way, without its embeddings."""
    tokens = torch.from_numpy(np.concatenate([coords, virtual_coords]).astype(np.float32))[None]
    is_virtual = torch.arange(tokens.shape[1])[None] >= len(coords)
    nothing = torch.zeros_like(is_virtual)
    return find_pairs(SubSliceBatch(tokens[:, :, :0], tokens, is_virtual, is_padding=nothing, is_masked=nothing), n_neighbors=N_NEIGHBORS)


def our_slice(tissue: Tissue, cells_each: int) -> None:
    """Order of the cells, virtual cells, sub-slices, and the pairs of each."""
    order = tissue_order(tissue.keys, tissue.coords_um)
    coords, embeddings, keys = tissue.coords_um[order], tissue.embeddings[order], tissue.keys[order]
    virtual = make_virtual_cells(coords, embeddings, VirtualCellConfig())
    for one in cut_sub_slices(coords, keys, SubSliceConfig(n_cells=cells_each).for_training):
        our_sub_slice(coords[one.rows] - coords[one.rows].mean(axis=0), virtual.coords_um)


def measure(size: Size) -> dict[str, dict[str, list[float]]]:
    """Processor seconds of both ways, for one sub-slice and for the whole slice."""
    tissue = made_up_tissue(size.n_cells)
    parts = [one.rows for one in cut_sub_slices(tissue.coords_um, tissue.keys, SubSliceConfig(n_cells=size.cells_each).for_training)]
    rows, virtual = parts[0], tissue.coords_um[:: len(tissue.coords_um) // 32][:32]
    coords = tissue.coords_um[rows] - tissue.coords_um[rows].mean(axis=0)
    of_sub_slice = {
        PUBLISHED: lambda: published_sub_slice(coords, virtual),
        OURS: lambda: our_sub_slice(coords, virtual),
    }
    take_turns(of_sub_slice, 1)  # compiles what is compiled when first used
    scanpy_graph(tissue.coords_um[: MOST_EXACT + 1], 10)  # this too
    of_slice = {
        PUBLISHED: lambda: published_slice(tissue, parts, at_its_best=False),
        AT_ITS_BEST: lambda: published_slice(tissue, parts, at_its_best=True),
        OURS: lambda: our_slice(tissue, size.cells_each),
    }
    return {"sub-slice": take_turns(of_sub_slice, size.n_sub_slice_rounds), "slice": take_turns(of_slice, size.n_slice_rounds)}


def test_bench_runs_tiny() -> None:
    seconds = measure(TINY)
    assert set(seconds) == set(AT_LEAST)
    assert all(len(rounds) == 1 for of_way in seconds.values() for rounds in of_way.values())


@pytest.mark.slow
def test_scales_are_extracted_several_times_as_fast() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = measure(FULLY)
    torch.set_num_threads(threads)
    lines = [
        "# Graph of a sub-slice, and all scales of a slice",
        "",
        "Question: how many times faster than scanpy's neighbours, Leiden and dense matrices are the pairs that our model needs, and all scales?",
        f"Processor time of all threads; {N_NEIGHBORS} neighbours in all ways; ways take turns in one process. scanpy is handed the neighbours that",
        "it would find itself, by the same library and settings, for its own calls of scikit-learn 1.9 and pynndescent 0.7 fail.",
    ]
    for what, of_way in seconds.items():
        lines += ["", f"One {what}", "", "| way | processor ms | least to most | ratio |", "|---|---|---|---|", *timing_rows(of_way, slow=PUBLISHED)]
    found = {what: ratio(of_way, PUBLISHED, OURS) for what, of_way in seconds.items()}
    reading = "; ".join(f"{what}: {times:.1f} times as fast, at least {AT_LEAST[what]:g} asked" for what, times in found.items())
    reading += f"; beside the published way at its best: {ratio(seconds['slice'], AT_ITS_BEST, OURS):.1f} times"
    packages = ("numpy", "scipy", "scikit-learn", "torch", "scanpy", "igraph", "pynndescent", "umap-learn")
    write_report("graph", [*lines, "", f"Reading: {reading}."], work=FULLY, packages=packages)
    assert all(found[what] >= least for what, least in AT_LEAST.items()), found
