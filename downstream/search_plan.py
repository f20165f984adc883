"""What an index of many vectors would take: bytes per vector are measured on small indexes, not assumed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from downstream.search import EMBEDDING_DIM, KINDS, MOST_TRAINING, TRAINING_PER_LIST, Kind, kind_for, n_lists, new_faiss_index

MEASURED_SIZES = (1_000, 3_000)  # vectors; what the second index has more is what vectors take


@dataclass(frozen=True)
class PlannedIndex:
    """One kind of index for `n_vectors` vectors.

    Attributes
    ----------
    bytes_per_vector : float
        Of the searchable part: vectors themselves (flat), graph and float16 vectors (hnsw), codes and numbers (ivfpq).
    fixed_bytes : float
        What does not grow with the vectors: centroids of lists and codes.
    disk_bytes : float
        All files: float16 vectors for exact similarities, rows, the searchable part.
    memory_bytes : float
        While it is built; a search maps the files.
    """

    kind: Kind
    n_vectors: int
    bytes_per_vector: float
    fixed_bytes: float
    disk_bytes: float
    memory_bytes: float
    n_lists: int
    is_chosen: bool


def plan_index(n_vectors: int) -> list[PlannedIndex]:
    """Plan every kind of index; sizes do not depend on what the vectors are, so random ones are measured."""
    vectors = np.random.default_rng(0).normal(size=(MEASURED_SIZES[1], EMBEDDING_DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    beside = EMBEDDING_DIM * 2 + 4  # vectors.f16 and rows.u32, as they are written
    plans = []
    for kind in KINDS:
        per_vector, fixed = (float(EMBEDDING_DIM * 2), 0.0) if kind == "flat" else _measure(kind, vectors)
        lists = n_lists(n_vectors) if kind == "ivfpq" else 0
        fixed += max(0, lists - n_lists(MEASURED_SIZES[0])) * (EMBEDDING_DIM * 4 + 8) if lists else 0
        searchable = 0.0 if kind == "flat" else n_vectors * per_vector + fixed
        training = min(n_vectors, TRAINING_PER_LIST * lists, MOST_TRAINING) * EMBEDDING_DIM * 4
        disk = n_vectors * beside + searchable
        plans.append(PlannedIndex(kind, n_vectors, per_vector, fixed, disk, searchable + training, lists, kind == kind_for(n_vectors)))
    return plans


def _measure(kind: Kind, vectors: np.ndarray) -> tuple[float, float]:
    """Bytes per vector and fixed bytes of an index as it is written, from two sizes."""
    import faiss

    index, sizes = new_faiss_index(kind, MEASURED_SIZES[0]), []
    if not index.is_trained:
        index.cp.niter = index.pq.cp.niter = 1  # centroids take the same bytes, good or bad
        index.train(vectors[: MEASURED_SIZES[0]])
    start = 0
    for size in MEASURED_SIZES:
        index.add(vectors[start:size])
        sizes.append(faiss.serialize_index(index).nbytes)
        start = size
    per_vector = (sizes[1] - sizes[0]) / (MEASURED_SIZES[1] - MEASURED_SIZES[0])
    return per_vector, sizes[0] - per_vector * MEASURED_SIZES[0]
