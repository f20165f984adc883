"""Deconvolution: shares on the simplex, found where they were mixed in, with intervals that cover what they promise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from downstream.deconvolution import (
    DECONVOLVER_FILE,
    DeconvolveConfig,
    Deconvolver,
    fit_deconvolver,
    load_deconvolver,
    no_embedding,
    save_deconvolver,
)
from downstream.profiles import Profiles
from downstream.pseudo_spots import PseudoSpotConfig, draw_pseudo_spots, split_cells, types_of
from downstream.share_baselines import nnls_shares, regression_shares, score_shares
from stofm.errors import DataError, FormatError

GENES = np.array([f"ENSG{number:011d}" for number in range(60)])
TYPES = ["a", "b", "c"]
CONFIG = DeconvolveConfig(pseudo_spots=PseudoSpotConfig(n_spots=1500, cells_per_spot=(3, 10)))


def reference(seed: int = 0, n_each: int = 60) -> Profiles:
    """Cells of three types, each with its own genes, of a panel of 60."""
    rng = np.random.default_rng(seed)
    rates = np.full((3, 60), 0.3)
    for number in range(3):
        rates[number, 20 * number : 20 * number + 20] = 4.0
    labels = np.repeat(np.arange(3), n_each)
    return Profiles("cells", csr_matrix(rng.poisson(rates[labels]).astype(np.float32)), GENES, GENES, np.array(TYPES)[labels])


def spots(seed: int = 1):
    return draw_pseudo_spots(reference(seed), np.array(TYPES), 400, CONFIG.pseudo_spots, np.random.default_rng(seed))


def a_projection(profiles: Profiles) -> np.ndarray:
    """Stand in for the encoder: a unit vector of 256 numbers that a multiple of the counts does not change."""
    projected = profiles.counts @ np.random.default_rng(5).normal(size=(60, 256))
    return (projected / np.linalg.norm(projected, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module", params=["counts", "embedding", "both"])
def head(request: pytest.FixtureRequest) -> Deconvolver:
    return fit_deconvolver(reference(), CONFIG.model_copy(update={"features": request.param}), embed=a_projection, weights_sha256="a" * 64)


def test_shares_lie_on_the_simplex_within_their_intervals(head: Deconvolver) -> None:
    found = head.predict(spots().profiles, a_projection)
    np.testing.assert_allclose(found.mean.sum(axis=1), 1, atol=1e-5)
    assert (found.mean >= 0).all()
    assert ((found.low <= found.mean) & (found.mean <= found.high)).all()
    assert (found.low >= 0).all()
    assert (found.high <= 1).all()


def test_shares_that_were_mixed_are_found(head: Deconvolver) -> None:
    mixed = spots()
    scores = score_shares(mixed.proportions, head.predict(mixed.profiles, a_projection).mean)
    assert scores["rmse"] < 0.08, scores
    assert scores["pearson"] > 0.95, scores


def test_intervals_cover_the_stated_share_of_new_spots(head: Deconvolver) -> None:
    mixed = spots(7)
    found = head.predict(mixed.profiles, a_projection)
    covered = ((found.low <= mixed.proportions) & (mixed.proportions <= found.high)).mean()
    assert 0.85 < covered < 0.96, covered  # 0.9 asked; 400 spots of three types


def test_depth_does_not_matter(head: Deconvolver) -> None:
    mixed = spots().profiles
    deeper = replace(mixed, counts=mixed.counts * 3)
    np.testing.assert_allclose(head.predict(deeper, a_projection).mean, head.predict(mixed, a_projection).mean, atol=1e-4)


def test_order_of_spots_and_genes_and_more_genes_do_not_matter(head: Deconvolver) -> None:
    mixed, order, genes = spots().profiles, np.random.default_rng(0).permutation(400), np.random.default_rng(1).permutation(60)
    other = replace(mixed, counts=mixed.counts[order][:, genes], gene_ids=GENES[genes], gene_names=GENES[genes])
    wider = other.of_genes(np.append(other.gene_ids, "ENSG99999999999"))
    expected = head.predict(mixed, a_projection).mean[order]
    np.testing.assert_allclose(head.predict(other, a_projection).mean, expected, atol=1e-5)
    np.testing.assert_allclose(head.predict(wider, a_projection).mean, expected, atol=1e-5)


def test_spots_without_counts_have_no_shares() -> None:
    head = fit_deconvolver(reference(), CONFIG.model_copy(update={"features": "counts"}), embed=no_embedding, weights_sha256="a" * 64)
    mixed = spots().profiles
    counts = mixed.counts.tolil()
    counts[3] = 0
    found = head.predict(replace(mixed, counts=csr_matrix(counts)), no_embedding)
    assert np.isnan(found.mean[3]).all()
    assert np.isfinite(np.delete(found.mean, 3, axis=0)).all()


def test_a_saved_head_predicts_the_same(head: Deconvolver, tmp_path: Path) -> None:
    save_deconvolver(tmp_path / "head", head)
    again = load_deconvolver(tmp_path / "head")
    np.testing.assert_array_equal(again.predict(spots().profiles, a_projection).mean, head.predict(spots().profiles, a_projection).mean)
    assert again.types.tolist() == TYPES
    assert again.weights_sha256 == "a" * 64


def test_a_damaged_head_is_refused(head: Deconvolver, tmp_path: Path) -> None:
    save_deconvolver(tmp_path / "head", head)
    (tmp_path / "head" / DECONVOLVER_FILE).write_bytes(b"no head")
    with pytest.raises(FormatError, match="Fit the head again"):
        load_deconvolver(tmp_path / "head")


def test_spots_of_another_panel_are_refused(head: Deconvolver) -> None:
    with pytest.raises(DataError, match="found 40 of the 60 genes of the head; expected 90%"):
        head.predict(spots().profiles.of_genes(GENES[:40]), a_projection)


def test_a_reference_of_one_type_or_few_genes_is_refused() -> None:
    cells = reference()
    with pytest.raises(DataError, match=r"found 1 cell types \['a'\] with 5 cells or more among 180 labelled cells"):
        types_of(replace(cells, labels=np.full(180, "a")))
    with pytest.raises(DataError, match="found 0 cell types"):
        types_of(replace(cells, labels=np.full(180, "")))
    with pytest.raises(DataError, match="found 8 genes; expected at least 20"):
        fit_deconvolver(cells.of_genes(GENES[:8]), CONFIG, embed=no_embedding, weights_sha256="a" * 64)


def test_cells_without_a_label_and_rare_types_are_left_out() -> None:
    cells = reference()
    labels = cells.labels.copy()
    labels[:4], labels[4:20] = "rare", ""
    types = types_of(replace(cells, labels=labels))
    assert types.tolist() == TYPES
    learnt, held_out = split_cells(replace(cells, labels=labels), types, 0.2, np.random.default_rng(0))
    assert len(learnt.labels) + len(held_out.labels) == 160
    assert set(held_out.labels.tolist()) == set(TYPES)


def test_pseudo_spots_are_sums_of_cells_before_thinning() -> None:
    mixed = spots()
    np.testing.assert_allclose(mixed.proportions.sum(axis=1), 1)
    assert (mixed.profiles.counts.data > 0).all()
    assert (mixed.profiles.counts.data == np.floor(mixed.profiles.counts.data)).all()
    of_a_alone = mixed.proportions[:, 0] == 1
    assert of_a_alone.any()
    sums = np.asarray(mixed.profiles.counts[np.flatnonzero(of_a_alone)].sum(axis=0)).ravel()
    assert sums[:20].mean() > 8 * sums[20:].mean()


def test_plain_ways_find_shares_too() -> None:
    mixed = spots()
    for shares in (nnls_shares(reference(), np.array(TYPES), mixed.profiles), regression_shares(spots(3), mixed.profiles)):
        np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
        assert score_shares(mixed.proportions, shares)["rmse"] < 0.12


def test_scores_of_the_truth_are_perfect() -> None:
    true = spots().proportions
    assert score_shares(true, true) == {"rmse": 0.0, "jsd": pytest.approx(0.0, abs=1e-9), "pearson": pytest.approx(1.0)}
