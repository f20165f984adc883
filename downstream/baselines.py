"""Plain features that every table holds beside the model's: principal components, and their means over neighbours."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix

from corpus.gene_ids import load_gene_tables, map_to_human
from corpus.gene_vocab import merge_genes
from corpus.slice import BoolArray, FloatArray, Slice, StrArray
from stofm.errors import DataError

N_COMPONENTS = 30
N_NEIGHBORS = 6


def pca_features(slices: list[Slice], *, fit_on: list[int]) -> list[FloatArray]:
    """Return the principal components of each slice's log counts, (n, 30) float64.

    Counts of the genes that all slices share are scaled to the median depth and log-transformed; components are fitted
    on the slices `fit_on` alone, centred slice by slice.
    """
    from sklearn.decomposition import PCA

    named = [_human_genes(one) for one in slices] if len({one.species for one in slices}) > 1 else [(one.counts, one.gene_names) for one in slices]
    shared = sorted(set.intersection(*(set(names.tolist()) for _, names in named)))
    if not shared:
        raise DataError(f"slices {[one.slice_id for one in slices]}: found no gene that all share; expected some. Compare slices of one kind.")
    logs = [_log_counts(all_counts, names, shared) for all_counts, names in named]
    centred = [np.asarray(one.todense()) - np.asarray(one.mean(axis=0)) for one in logs]
    pca = PCA(min(N_COMPONENTS, len(shared), sum(len(centred[i]) for i in fit_on)), random_state=0).fit(np.vstack([centred[i] for i in fit_on]))
    return [pca.transform(one) for one in centred]


def with_neighbor_mean(features: FloatArray, coords_um: FloatArray) -> FloatArray:
    """Put the mean over each cell's 6 nearest neighbours (squidpy's graph) beside its own features, (n, 2F).

    Neighbours with NaN features do not count.
    """
    import anndata
    from squidpy.gr import spatial_neighbors_knn

    table = anndata.AnnData(obsm={"spatial": coords_um}, shape=(len(coords_um), 0))
    spatial_neighbors_knn(table, n_neighs=min(N_NEIGHBORS, len(coords_um) - 1))
    graph = csr_matrix(table.obsp["spatial_connectivities"])
    is_known: BoolArray = np.asarray(np.isfinite(features).all(axis=1))
    sums, n_known = graph @ np.where(is_known[:, None], features, 0.0), graph @ is_known.astype(np.float64)
    return np.hstack([features, sums / np.maximum(n_known, 1)[:, None]])


def _human_genes(one: Slice) -> tuple[csr_matrix, StrArray]:
    """Counts of human genes, by which slices of two species compare."""
    return merge_genes(one.counts, map_to_human(one, load_gene_tables())[0])


def _log_counts(all_counts: csr_matrix, names: StrArray, genes: list[str]) -> csr_matrix:
    column = {name: number for number, name in reversed(list(enumerate(names.tolist())))}
    counts = csr_matrix(all_counts[:, [column[name] for name in genes]], dtype=np.float64)
    depth = np.asarray(counts.sum(axis=1)).ravel()
    factor = np.median(depth[depth > 0]) / np.maximum(depth, 1)
    counts.data = np.log1p(counts.data * np.repeat(factor, np.diff(counts.indptr)))
    return counts
