"""Axes in few dimensions: what slices do not vary in together may share them, and distances within slices stay."""

from __future__ import annotations

import numpy as np
import pytest

from pretrain.shared_axes import shared_axes

N_GENES = 60


def axes_on(genes: range, n_axes: int, seed: int) -> np.ndarray:
    """Orthonormal axes of a slice that measures these genes, (n_axes, 60)."""
    axes = np.zeros((n_axes, N_GENES))
    axes[:, genes] = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(genes), n_axes)))[0].T
    return axes


def error(axes: np.ndarray, found: np.ndarray) -> float:
    """Largest difference of products of the slice's axes, as the map gives them, to what they are."""
    told = axes @ found / np.linalg.norm(axes, axis=1, keepdims=True)
    return float(np.abs(told @ told.T - np.eye(len(axes))).max())


def test_one_slice_keeps_its_leading_axes_and_nothing_else() -> None:
    axes = axes_on(range(40), 9, 0)
    found = shared_axes([axes * np.linspace(1, 0.5, 9)[:, None]], 4)
    np.testing.assert_allclose(found @ found.T, axes[:4].T @ axes[:4], atol=1e-9)


def test_slices_without_a_gene_in_common_lie_in_the_same_dimensions() -> None:
    slices = [axes_on(range(20 * number, 20 * number + 20), 15, number) for number in range(3)]
    found = shared_axes(slices, 16)
    assert found.shape == (N_GENES, 16)
    assert max(error(axes, found) for axes in slices) < 1e-3


def test_slices_with_genes_in_common_keep_their_distances() -> None:
    slices = [axes_on(range(15 * number, 15 * number + 30), 12, number) for number in range(3)]
    assert max(error(axes, shared_axes(slices, 24)) for axes in slices) < 0.05


@pytest.mark.parametrize("length", [0.1, 10.0])
def test_neither_the_order_nor_the_lengths_of_slices_matter(length: float) -> None:
    slices = [axes_on(range(15 * number, 15 * number + 30), 12, number) * np.linspace(1, 0.5, 12)[:, None] for number in range(3)]
    np.testing.assert_allclose(shared_axes(slices, 20), shared_axes([length * axes for axes in slices[::-1]], 20), atol=1e-6)


def test_where_there_is_no_room_nothing_grows() -> None:
    slices = [axes_on(range(N_GENES), 30, number) for number in range(4)]
    found = shared_axes(slices, 10)
    assert np.isfinite(found).all()
    assert np.linalg.norm(found, 2) < 3


def test_more_dimensions_than_slices_vary_in_are_not_made() -> None:
    assert shared_axes([axes_on(range(10), 3, 0), axes_on(range(10, 20), 4, 1)], 30).shape == (N_GENES, 7)
