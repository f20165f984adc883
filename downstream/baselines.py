"""Plain features that every table holds beside the model's: principal components, and their means over neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix

from corpus.gene_ids import load_gene_tables, map_to_human
from corpus.gene_vocab import merge_genes
from corpus.slice import BoolArray, FloatArray, Slice, StrArray
from stofm.errors import DataError

N_COMPONENTS = 30
N_VARIABLE = 5000  # genes, where more are shared; 2,000 cost the DLPFC slices 0.06 of macro-F1
N_NEIGHBORS = 6


def shared_counts(slices: Sequence[Slice]) -> tuple[list[csr_matrix], list[str]]:
    """Return the counts of the genes that all slices have, (n_cells, G) each, and these genes; by their human names where species differ."""
    named = [_human_genes(one) for one in slices] if len({one.species for one in slices}) > 1 else [(one.counts, one.gene_names) for one in slices]
    shared = sorted(set.intersection(*(set(names.tolist()) for _, names in named)))
    if not shared:
        raise DataError(f"slices {[one.slice_id for one in slices]}: found no gene that all share; expected some. Compare slices of one kind.")
    columns = [{name: number for number, name in reversed(list(enumerate(names.tolist())))} for _, names in named]
    return [csr_matrix(counts[:, [column[name] for name in shared]]) for (counts, _), column in zip(named, columns, strict=True)], shared


def pca_features(slices: Sequence[Slice], *, fit_on: list[int]) -> list[FloatArray]:
    """Return the principal components of each slice's log counts, (n, 30) float64.

    Counts of the genes that all slices share are scaled to the median depth and log-transformed; of more than 5,000 genes
    the most variable ones are taken (Seurat's dispersions, ranked over slices by scanpy). Genes and components are chosen on the slices
    `fit_on` alone, centred slice by slice.
    """
    from sklearn.decomposition import PCA

    logs = [_log_counts(counts) for counts in shared_counts(slices)[0]]
    if logs[0].shape[1] > N_VARIABLE:
        is_variable = _most_variable([logs[i] for i in fit_on])
        logs = [one[:, is_variable] for one in logs]
    centred = [np.asarray(one.todense()) - np.asarray(one.mean(axis=0)) for one in logs]
    pca = PCA(min(N_COMPONENTS, logs[0].shape[1], sum(len(centred[i]) for i in fit_on)), random_state=0).fit(np.vstack([centred[i] for i in fit_on]))
    return [pca.transform(one) for one in centred]


def _most_variable(logs: list[csr_matrix]) -> BoolArray:
    """Tell which genes vary most, (G,) bool, ranked within each slice first."""
    import anndata
    from scanpy.preprocessing import highly_variable_genes

    table = anndata.concat([anndata.AnnData(one) for one in logs], label="slice", index_unique="-")
    highly_variable_genes(table, n_top_genes=N_VARIABLE, batch_key="slice" if len(logs) > 1 else None)
    return np.asarray(table.var["highly_variable"], dtype=bool)


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


def _log_counts(counts: csr_matrix) -> csr_matrix:
    """Counts scaled to the median depth of the slice, then log(1 + x)."""
    counts = csr_matrix(counts, dtype=np.float64)
    depth = np.asarray(counts.sum(axis=1)).ravel()
    factor = np.median(depth[depth > 0]) / np.maximum(depth, 1)
    counts.data = np.log1p(counts.data * np.repeat(factor, np.diff(counts.indptr)))
    return counts
