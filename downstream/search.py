"""Search: cells, or whole regions, like these ones, across a corpus of embedded slices.

```text
stofm.json        kind of folder
index.json        model, kind of index, slices and how many of their cells, how hard to search and what recall that gives
vectors.f16       (n, 256) float16, unit vectors: embeddings less their mean over the corpus; read by mmap
rows.u32          (n,) uint32, the row of each vector in its slice
patches.safetensors   mean: (256,); of pieces of tissue of about 100 cells: vectors (P, 256), centres_um (P, 2), slices (P,), sizes (P,)
cells.faiss       HNSW or IVF-PQ, read by mmap; none of kind flat, where `vectors.f16` itself is searched
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from corpus.slice import BoolArray, FloatArray, IntArray
from corpus.sub_slices import SubSliceConfig, cut_sub_slices
from stofm.config import FrozenModel, parse_config
from stofm.durable import MARKER, read_json, replacing, require_folder, write_json
from stofm.errors import DataError, FormatError
from stofm.fields import EMBEDDING_DIM

INDEX_KIND = "stofm-index/1"
META, VECTORS, ROWS, PATCHES, CELLS = "index.json", "vectors.f16", "rows.u32", "patches.safetensors", "cells.faiss"

Kind = Literal["flat", "hnsw", "ivfpq"]
KINDS: tuple[Kind, ...] = ("flat", "hnsw", "ivfpq")
LARGEST_FLAT, LARGEST_HNSW = 50_000, 2_000_000  # vectors; HNSW needs all of them in memory while it is built
CELLS_OF_PATCH = 100
LINKS, BUILD_EFFORT = 32, 200  # of HNSW
CODE_BYTES, TRAINING_PER_LIST, MOST_TRAINING, TRAINING_ROUNDS = 64, 64, 1_000_000, 10  # of IVF-PQ
EFFORTS = (16, 32, 64, 128, 256, 512)  # efSearch or nprobe; the first that reaches the recall wanted is kept
RERANKED = 10  # candidates per neighbour whose similarity is computed again from the vectors
BLOCK = 1 << 16
N_PROBED = 200  # vectors by which recall is measured


class IndexConfig(FrozenModel):
    """What kind of index, and how hard it is searched."""

    kind: Kind | None = Field(None, description="Default: by the number of cells.")
    recall: float = Field(0.95, gt=0, le=1, description="Of the 10 nearest; the search is made as hard as it takes to reach it, if any effort does.")


class IndexMeta(FrozenModel):
    """What ``index.json`` holds; recall is that of the 10 nearest, against exact search."""

    format: Literal["stofm-index/1"]
    weights_sha256: str
    kind: Kind
    slices: list[str]
    n_cells: list[int] = Field(description="Vectors of each slice, in the order of the file.")
    effort: int = Field(ge=0, description="efSearch (hnsw) or nprobe (ivfpq).")
    recall_at_10: float


@dataclass(frozen=True, eq=False)
class Embedded:
    """An embedded slice: its name, (n, 256) representations with NaN rows, (n, 2) places in micrometres with NaN where there are none."""

    name: str
    cell_repr: FloatArray
    coords_um: FloatArray


@dataclass(frozen=True, eq=False)
class SearchIndex:
    """An index on disk, open for search."""

    folder: Path
    meta: IndexMeta
    vectors: np.ndarray
    rows: np.ndarray
    patches: dict[str, np.ndarray]
    cells: Any | None

    def nearest_cells(self, cell_repr: FloatArray, k: int, *, without: str | None = None) -> tuple[IntArray, FloatArray]:
        """Find the `k` nearest cells of each query, (q, k): numbers of vectors, nearest first, and cosine similarities.

        Where there are no more, the number is -1 and the similarity NaN.
        `without` names a slice whose cells are passed over.
        """
        return self._search(self.unit(cell_repr), k, self._range(without), self.meta.effort)

    def nearest_patches(self, cell_repr: FloatArray, k: int, *, without: str | None = None) -> tuple[IntArray, FloatArray]:
        """Find the `k` pieces of tissue most like a region with these cells, (n, 256): numbers of patches and cosine similarities, (<= k,)."""
        region = _units(self.unit(cell_repr).mean(axis=0, keepdims=True))[0]
        similarity = self.patches["vectors"].astype(np.float32) @ region
        if without in self.meta.slices:
            similarity[self.patches["slices"] == self.meta.slices.index(without)] = -np.inf
        order = np.argsort(-similarity, kind="stable")[:k]
        order = order[np.isfinite(similarity[order])]
        return order, similarity[order]

    def unit(self, cell_repr: FloatArray) -> FloatArray:
        """Representations as the index holds them: less the mean of the corpus, unit length, (n, 256) float32."""
        return _units(cell_repr - self.patches["mean"])

    def place(self, vectors: IntArray) -> tuple[IntArray, IntArray]:
        """Return slice number and row of vectors."""
        borders = np.cumsum(self.meta.n_cells)
        return np.searchsorted(borders, vectors, side="right"), self.rows[vectors].astype(np.int64)

    def _range(self, name: str | None) -> tuple[int, int]:
        if name not in self.meta.slices:
            return 0, 0
        number = self.meta.slices.index(name)
        start = sum(self.meta.n_cells[:number])
        return start, start + self.meta.n_cells[number]

    def _search(self, queries: FloatArray, k: int, passed_over: tuple[int, int], effort: int) -> tuple[IntArray, FloatArray]:
        if self.cells is None:
            return exact_search(self.vectors, queries, k, passed_over)
        candidates = self.cells.search(queries, k * RERANKED, params=_parameters(self.meta.kind, effort, passed_over))[1]
        held = np.where(candidates[..., None] >= 0, self.vectors[np.maximum(candidates, 0)], np.nan).astype(np.float32)
        similarity = np.where(candidates >= 0, np.einsum("qcd,qd->qc", held, queries), -np.inf)
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        similarity = np.take_along_axis(similarity, order, axis=1)
        found = np.isfinite(similarity)
        return np.where(found, np.take_along_axis(candidates, order, axis=1), -1), np.where(found, similarity, np.nan)


def exact_search(vectors: np.ndarray, queries: FloatArray, k: int, passed_over: tuple[int, int] = (0, 0)) -> tuple[IntArray, FloatArray]:
    """Search every vector, a block at a time; returns as `nearest_cells`."""
    import faiss

    found: IntArray = np.full((len(queries), k), -1, np.int64)
    best: FloatArray = np.full((len(queries), k), -np.inf, np.float32)
    for start in range(0, len(vectors), BLOCK):
        numbers = np.arange(start, min(start + BLOCK, len(vectors)))
        numbers = numbers[(numbers < passed_over[0]) | (numbers >= passed_over[1])]
        if not len(numbers):
            continue
        similarity, nearest = faiss.knn(queries, vectors[numbers].astype(np.float32), min(k, len(numbers)), metric=faiss.METRIC_INNER_PRODUCT)
        all_found, all_best = np.hstack([found, numbers[nearest]]), np.hstack([best, similarity])
        order = np.argsort(-all_best, axis=1, kind="stable")[:, :k]
        found, best = np.take_along_axis(all_found, order, axis=1), np.take_along_axis(all_best, order, axis=1)
    return found, np.where(found >= 0, best, np.nan)


def build_index(folder: Path, read: Sequence[Callable[[], Embedded]], weights_sha256: str, config: IndexConfig) -> IndexMeta:
    """Write an index of slices, one in memory at a time; the folder is whole or absent.

    Parameters
    ----------
    read : list of functions, each reads an embedded slice; called twice

    Raises
    ------
    DataError
        If no cell is embedded, or too few for the lists of an IVF-PQ.
    """
    mean = _mean(one() for one in read)
    with replacing(folder) as aside:
        aside.mkdir()
        names, n_cells, patches = [], [], []
        with (aside / VECTORS).open("wb") as vectors_file, (aside / ROWS).open("wb") as rows_file:
            for number, one in enumerate(one() for one in read):
                rows = np.flatnonzero(np.isfinite(one.cell_repr).all(axis=1))
                vectors = _units(one.cell_repr[rows] - mean)
                vectors_file.write(vectors.astype(np.float16).tobytes())
                rows_file.write(rows.astype(np.uint32).tobytes())
                names.append(one.name)
                n_cells.append(len(rows))
                patches.append(_patches(vectors, one.coords_um[rows], number))
        save_file({"mean": mean} | {key: np.concatenate([part[key] for part in patches]) for key in patches[0]}, aside / PATCHES)
        chosen = config.kind or kind_for(sum(n_cells))
        meta = IndexMeta(format=INDEX_KIND, weights_sha256=weights_sha256, kind=chosen, slices=names, n_cells=n_cells, effort=0, recall_at_10=1.0)
        write_json(aside / META, meta.model_dump())
        write_json(aside / MARKER, {"kind": INDEX_KIND})
        if chosen != "flat":
            _write_cells(aside, chosen, sum(n_cells))
            effort, reached = _tune(open_index(aside), config.recall)
            meta = meta.model_copy(update={"effort": effort, "recall_at_10": reached})
            write_json(aside / META, meta.model_dump())
    return meta


def kind_for(n_vectors: int) -> Kind:
    """Choose the kind of index by the number of vectors."""
    return "flat" if n_vectors <= LARGEST_FLAT else "hnsw" if n_vectors <= LARGEST_HNSW else "ivfpq"


def n_lists(n_vectors: int) -> int:
    """Lists of an IVF-PQ: about 4 sqrt(n), a power of 2."""
    return 1 << max(2, round(np.log2(4 * n_vectors**0.5)))


def new_faiss_index(kind: Kind, n_vectors: int) -> Any:
    """Make an empty faiss index for about so many vectors."""
    import faiss as stubbed

    faiss: Any = stubbed  # whose stubs are wrong about the second argument
    if kind == "hnsw":
        index = faiss.IndexHNSWSQ(EMBEDDING_DIM, faiss.ScalarQuantizer.QT_fp16, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = BUILD_EFFORT
        return index
    # np: without polysemous training, minutes that a search by these codes makes no use of
    index = faiss.index_factory(EMBEDDING_DIM, f"IVF{n_lists(n_vectors)},PQ{CODE_BYTES}np", faiss.METRIC_INNER_PRODUCT)
    for clustering in (index.cp, index.pq.cp):
        clustering.niter, clustering.min_points_per_centroid = TRAINING_ROUNDS, 1  # recall is measured, so that faiss need not warn
    return index


def open_index(folder: Path) -> SearchIndex:
    """Open an index; vectors and lists stay on disk until they are searched.

    Raises
    ------
    ConfigError, FormatError
        If `folder` is no index, or a file of it is missing or damaged.
    """
    require_folder(folder, INDEX_KIND, made_by="stofm index build")
    meta = parse_config(IndexMeta, read_json(folder / META), where=f"index {folder}: {META}")
    n = sum(meta.n_cells)
    sizes = {VECTORS: n * EMBEDDING_DIM * 2, ROWS: n * 4}
    for name, size in sizes.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if found != size:
            raise FormatError(f"index {folder}: {name} has {found} bytes; expected {size}. Build the index again.")
    vectors = np.memmap(folder / VECTORS, np.float16, "r", shape=(n, EMBEDDING_DIM))
    rows = np.memmap(folder / ROWS, np.uint32, "r", shape=(n,))
    try:
        patches = load_file(folder / PATCHES)
        cells = None if meta.kind == "flat" else _read_faiss(folder / CELLS)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise FormatError(f"index {folder}: {str(error).splitlines()[0]}; expected whole files. Build the index again.") from error
    return SearchIndex(folder, meta, vectors, rows, patches, cells)


def index_bytes(folder: Path) -> int:
    """Return the bytes of all files of an index."""
    return sum(file.stat().st_size for file in folder.iterdir())


def require_index_of(index: SearchIndex, weights_sha256: str, name: str) -> None:
    """Raise `DataError` unless a slice was embedded with the model of the index."""
    if index.meta.weights_sha256 != weights_sha256:
        raise DataError(f"index {index.folder}: made of model {index.meta.weights_sha256[:12]}; expected {weights_sha256[:12]}, that of slice "
                        f"{name!r}. Embed the slice with the model of the index, or build an index of its own model.")  # fmt: skip


def _read_faiss(path: Path) -> Any:
    import faiss

    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)


def _parameters(kind: Kind, effort: int, passed_over: tuple[int, int]) -> Any:
    import faiss as stubbed

    faiss: Any = stubbed  # whose stubs know only a part of it
    selector = faiss.IDSelectorNot(faiss.IDSelectorRange(*passed_over)) if passed_over[1] > passed_over[0] else None
    if kind == "hnsw":
        return faiss.SearchParametersHNSW(efSearch=max(effort, 10 * RERANKED), sel=selector)
    return faiss.SearchParametersIVF(nprobe=effort, sel=selector)


def _write_cells(folder: Path, kind: Kind, n: int) -> None:
    import faiss

    index = new_faiss_index(kind, n)
    vectors = np.memmap(folder / VECTORS, np.float16, "r", shape=(n, EMBEDDING_DIM))
    if not index.is_trained:
        wanted = min(n, TRAINING_PER_LIST * index.nlist, MOST_TRAINING)
        if wanted < max(256, index.nlist):
            raise DataError(f"index: found {n} embedded cells; expected at least {max(256, index.nlist)} for ivfpq. Choose --kind flat.")
        rows = np.sort(np.random.default_rng(0).choice(n, wanted, replace=False))
        index.train(vectors[rows].astype(np.float32))
    for start in range(0, n, BLOCK):
        index.add(vectors[start : start + BLOCK].astype(np.float32))
    faiss.write_index(index, str(folder / CELLS))


def _tune(index: SearchIndex, wanted: float) -> tuple[int, float]:
    """Return the least effort that reaches the recall wanted, or the one that reaches most, and its recall."""
    probes = np.sort(np.random.default_rng(0).choice(len(index.vectors), min(N_PROBED, len(index.vectors)), replace=False))
    best = (0, -1.0)
    for effort in EFFORTS:
        reached = recall_at(index, probes, effort)
        best = (effort, reached) if reached > best[1] else best
        if reached >= wanted:
            break
    return best


def recall_at(index: SearchIndex, probes: IntArray, effort: int, k: int = 10) -> float:
    """Share of the `k` nearest other vectors of some vectors, by exact search, that the index finds."""
    queries = index.vectors[probes].astype(np.float32)
    true, found = exact_search(index.vectors, queries, k + 1)[0], index._search(queries, k + 1, (0, 0), effort)[0]
    shares = [len(set(a[a != one][:k]) & set(b[b != one][:k])) / k for one, a, b in zip(probes, true, found, strict=True)]
    return float(np.mean(shares))


def _mean(slices: Iterable[Embedded]) -> FloatArray:
    total, n = np.zeros(EMBEDDING_DIM), 0
    for one in slices:
        is_known: BoolArray = np.asarray(np.isfinite(one.cell_repr).all(axis=1))
        total += one.cell_repr[is_known].sum(axis=0, dtype=np.float64)
        n += int(is_known.sum())
    if not n:
        raise DataError("index: found no embedded cell; expected some. Embed the slices with `stofm embed`.")
    return (total / n).astype(np.float32)


def _patches(vectors: FloatArray, coords_um: FloatArray, number: int) -> dict[str, np.ndarray]:
    """Cut a slice into pieces of about 100 cells and average each; cells without a place belong to none."""
    placed = np.flatnonzero(np.isfinite(coords_um).all(axis=1))
    parts = cut_sub_slices(coords_um[placed], np.zeros(len(placed), np.uint64), SubSliceConfig(n_cells=CELLS_OF_PATCH)) if len(placed) else []
    owned = [placed[one.owned] for one in parts]
    return {
        "vectors": _units(np.array([vectors[rows].mean(axis=0) for rows in owned]).reshape(-1, EMBEDDING_DIM)).astype(np.float16),
        "centres_um": np.array([coords_um[rows].mean(axis=0) for rows in owned], np.float32).reshape(-1, 2),
        "slices": np.full(len(owned), number, np.int32),
        "sizes": np.array([len(rows) for rows in owned], np.int32),
    }


def _units(vectors: FloatArray) -> FloatArray:
    return np.ascontiguousarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)
