"""Imputation: a hidden gene cannot leak; neighbours' expression is read, and cells of the other table only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.stats import spearmanr

from downstream.imputation import ImputeConfig, impute, retrieve, scaled_expression, score_genes
from downstream.profiles import Profiles, log_expression, shared_genes
from stofm.errors import DataError

GENES = np.array([f"ENSG{number:011d}" for number in range(40)])
SHARED, HIDDEN = GENES[:30], GENES[30:]


def cells(seed: int, n: int = 300) -> Profiles:
    """Cells along one axis, on which every gene depends in its own way."""
    rng = np.random.default_rng(seed)
    place = rng.uniform(-1, 1, n)
    slopes = np.random.default_rng(50).normal(size=40) * 0.6
    return Profiles(f"cells_{seed}", csr_matrix(rng.poisson(np.exp(3 + place[:, None] * slopes)).astype(np.float32)), GENES, GENES, np.full(n, ""))


def features_of(profiles: Profiles) -> np.ndarray:
    return log_expression(profiles.of_genes(SHARED).counts).toarray()


def imputed(query: Profiles, reference: Profiles):
    return impute(features_of(query), features_of(reference), reference, HIDDEN, SHARED, ImputeConfig(n_neighbors=15))


def test_genes_are_read_from_cells_alike() -> None:
    query, reference = cells(0), cells(1)
    found = imputed(query, reference)
    scores = score_genes(scaled_expression(query, HIDDEN, SHARED), found.values)
    assert np.median(scores["spearman"]) > 0.5, scores
    mean = csr_matrix(np.repeat(scaled_expression(reference, HIDDEN, SHARED).mean(axis=0), 300, axis=0))
    assert (
        scores["rmse"] < score_genes(scaled_expression(query, HIDDEN, SHARED), mean)["rmse"]
    ).mean() >= 0.8  # of ten genes, some hardly vary along the axis


def test_a_hidden_gene_cannot_leak() -> None:
    query, reference = cells(0), cells(1)
    counts = query.counts.toarray()
    counts[:, 30:] = np.random.default_rng(2).poisson(50, (300, 10))
    a, b = imputed(query, reference), imputed(replace(query, counts=csr_matrix(counts)), reference)
    np.testing.assert_array_equal(a.values.toarray(), b.values.toarray())
    np.testing.assert_array_equal(a.similarity, b.similarity)
    known = scaled_expression(query, SHARED, SHARED).toarray()
    np.testing.assert_array_equal(known, scaled_expression(replace(query, counts=csr_matrix(counts)), SHARED, SHARED).toarray())


def test_confidence_tells_which_genes_can_be_imputed() -> None:
    """Genes that follow the axis can be; one that follows nothing cannot."""
    reference = cells(1)
    counts = reference.counts.toarray()
    counts[:, 39] = np.random.default_rng(3).poisson(3, 300)
    found = imputed(cells(0), replace(reference, counts=csr_matrix(counts)))
    assert abs(found.confidence[-1]) < 0.2
    assert np.median(found.confidence[:-1]) > 0.4


def test_weights_sum_to_one_and_a_cell_is_not_read_from_itself() -> None:
    features = features_of(cells(0))
    found = retrieve(features, features, 10, is_same=True)
    np.testing.assert_allclose(np.asarray(found.weights.sum(axis=1)).ravel(), 1, atol=1e-5)
    assert found.weights.diagonal().sum() == 0


def test_what_all_cells_of_a_table_share_does_not_count() -> None:
    query, reference = features_of(cells(0)), features_of(cells(1))
    a, b = retrieve(query, reference, 10), retrieve(query + 5.0, reference - 3.0, 10)
    np.testing.assert_allclose(a.weights.toarray(), b.weights.toarray(), atol=1e-4)


def test_cells_without_features_are_read_from_none() -> None:
    query = features_of(cells(0)).astype(np.float64)
    query[4] = np.nan
    found = retrieve(query, features_of(cells(1)), 10)
    assert np.isnan(found.similarity[4])
    assert found.weights[4].nnz == 0


def test_scores_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    true, predicted = rng.poisson(2, (50, 3)).astype(np.float32), rng.poisson(2, (50, 3)).astype(np.float32)
    predicted[:, 2] = 1.0
    true[:, 1] = 2.0
    scores = score_genes(csr_matrix(true), csr_matrix(predicted))
    assert scores["pearson"][0] == pytest.approx(np.corrcoef(true[:, 0], predicted[:, 0])[0, 1])
    assert scores["spearman"][0] == pytest.approx(spearmanr(true[:, 0], predicted[:, 0])[0])
    assert scores["spearman"][2] == 0  # a constant prediction says nothing
    assert np.isnan(scores["pearson"][1])  # a constant truth asks nothing
    assert scores["rmse"][2] == pytest.approx(np.sqrt(((true[:, 2] - 1) ** 2).mean()))


def test_too_few_genes_or_cells_are_named() -> None:
    with pytest.raises(DataError, match="'cells_0' and 'cells_1': found 5 genes in common; expected at least 20"):
        shared_genes([cells(0), cells(1).of_genes(GENES[:5])])
    with pytest.raises(DataError, match="found 8 cells with features; expected at least 15"):
        retrieve(features_of(cells(0)), features_of(cells(1, 8)), 15)
