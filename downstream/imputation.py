"""Imputation: genes that a slice does not measure, read from reference cells whose embedding is near; each gene with how far to trust it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field
from scipy.sparse import csr_matrix
from scipy.stats import rankdata

from corpus.slice import FloatArray, StrArray
from downstream.probes import centre_slice
from downstream.profiles import Profiles, log_expression
from downstream.scores import pearson_of_columns
from stofm.config import FrozenModel
from stofm.errors import DataError

BLOCK_GENES = 256  # columns that are dense at once
CONFIDENCE_CELLS = 2000  # of the reference, imputed from the others to tell how well each gene can be imputed


class ImputeConfig(FrozenModel):
    """How expression is read from the reference."""

    n_neighbors: int = Field(30, ge=1, description="Reference cells that each cell is read from.")
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Retrieved:
    """Reference cells of each cell.

    Attributes
    ----------
    weights : (n, n_reference) CSR float32
        Rows sum to 1; empty rows where a cell has no features.
    similarity : (n,) float32
        Mean cosine similarity of a cell to the reference cells it is read from; NaN likewise.
    """

    weights: csr_matrix
    similarity: FloatArray


@dataclass(frozen=True, eq=False)
class Imputed:
    """Expression that was not measured.

    Attributes
    ----------
    values : (n, G) CSR float32
        log(1 + molecules per 10,000 molecules of the genes that both tables measure).
    confidence : (G,) float32
        Spearman correlation of the gene between reference cells as measured and as read from the other reference cells; NaN for a
        constant gene.
    similarity : (n,) float32
        See `Retrieved`.
    """

    gene_ids: StrArray
    gene_names: StrArray
    values: csr_matrix
    confidence: FloatArray
    similarity: FloatArray


def impute(query: FloatArray, reference: FloatArray, measured: Profiles, genes: StrArray, shared: StrArray, config: ImputeConfig) -> Imputed:
    """Impute genes that the reference measures.

    Parameters
    ----------
    query, reference : (n, F), (n_reference, F) float
        Features of both, of the genes that both measure alone: whatever else either measures must not enter them.
    measured : Profiles
        The reference, with `genes` and `shared` among its genes.
    genes, shared : (G,), (S,) str
        Human ids of the genes to impute, and of those by whose sum expression is scaled.
    """
    expression = scaled_expression(measured, genes, shared)
    found = retrieve(query, reference, config.n_neighbors)
    confidence = _confidence(reference, expression, config)
    return Imputed(genes, measured.of_genes(genes).gene_names, csr_matrix(found.weights @ expression), confidence, found.similarity)


def scaled_expression(measured: Profiles, genes: StrArray, shared: StrArray) -> csr_matrix:
    """Log expression of `genes`, (n, G) CSR float32, per 10,000 molecules of `shared`: a depth that hidden genes have no part in."""
    depth = np.asarray(measured.of_genes(shared).counts.sum(axis=1)).ravel()
    return log_expression(measured.of_genes(genes).counts, depth=depth)


def retrieve(query: FloatArray, reference: FloatArray, n_neighbors: int, *, is_same: bool = False) -> Retrieved:
    """Find the reference cells of each cell by cosine similarity of centred features (faiss, exact); nearer ones weigh more.

    A weight falls to 1/e where similarity falls short of the nearest cell's by the spread of the similarities of all cells found: one scale for all.
    With `is_same`, query and reference are one table and a cell is not read from itself.

    Raises
    ------
    DataError
        If fewer reference cells than neighbours have features.
    """
    import faiss

    unit_query, unit_reference = _units(query), _units(reference)
    rows, columns = (np.flatnonzero(np.isfinite(one).all(axis=1)) for one in (unit_query, unit_reference))
    k = n_neighbors + is_same
    if len(columns) < k:
        raise DataError(f"reference: found {len(columns)} cells with features; expected at least {k}. Lower --neighbors, or give more cells.")
    index = faiss.IndexFlatIP(unit_reference.shape[1])
    index.add(unit_reference[columns])
    similarity, nearest = index.search(unit_query[rows], k)
    odds = np.exp((similarity - similarity.max(axis=1, keepdims=True)) / max(float(similarity.std(axis=1).mean()), 1e-6))
    if is_same:
        odds[columns[nearest] == rows[:, None]] = 0
    odds /= odds.sum(axis=1, keepdims=True)
    shape = (len(query), len(reference))
    weights = csr_matrix((odds.ravel().astype(np.float32), (np.repeat(rows, k), columns[nearest].ravel())), shape=shape)
    mean = np.full(len(query), np.nan, np.float32)
    mean[rows] = similarity.mean(axis=1)
    return Retrieved(weights, mean)


def _units(features: FloatArray) -> FloatArray:
    centred = centre_slice(features)
    return np.ascontiguousarray(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12), np.float32)


def _confidence(reference: FloatArray, expression: csr_matrix, config: ImputeConfig) -> FloatArray:
    rng = np.random.default_rng(config.seed)
    rows = np.sort(rng.choice(len(reference), min(CONFIDENCE_CELLS, len(reference)), replace=False))
    found = retrieve(reference[rows], reference[rows], min(config.n_neighbors, len(rows) - 1), is_same=True)
    return score_genes(expression[rows], csr_matrix(found.weights @ expression[rows]))["spearman"].astype(np.float32)


def score_genes(true: csr_matrix, predicted: csr_matrix) -> dict[str, FloatArray]:
    """Score each gene over cells, (G,) each: Pearson, Spearman (0 for a constant prediction, NaN for a gene that is constant itself), RMSE."""
    blocks = []
    for start in range(0, true.shape[1], BLOCK_GENES):
        a, b = (csr_matrix(one[:, start : start + BLOCK_GENES]).toarray().astype(np.float64) for one in (true, predicted))
        ranks = rankdata(a, axis=0), rankdata(b, axis=0)
        blocks.append([pearson_of_columns(a, b), pearson_of_columns(*ranks), np.sqrt(((a - b) ** 2).mean(axis=0))])
    return dict(zip(("pearson", "spearman", "rmse"), (np.concatenate(one) for one in zip(*blocks, strict=True)), strict=True))
