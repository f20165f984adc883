"""Effective rank and spread of embeddings, and the alarm."""

from __future__ import annotations

import pytest
import torch

from pretrain.watch import alarm_of, spread_of


@pytest.mark.parametrize("rank", [1, 3, 10])
@pytest.mark.parametrize("n", [12, 200])
def test_vectors_along_orthogonal_axes_have_as_many_ranks_as_axes(n, rank):
    axes = torch.linalg.qr(torch.randn(64, rank, generator=torch.Generator().manual_seed(0)))[0]
    signs = torch.tensor([1.0, -1.0]).repeat(rank)
    points = torch.cat([torch.stack([axis * sign for sign in (1, -1)]) for axis in axes.T]).repeat(n, 1)
    assert len(signs) * n == len(points)
    found = spread_of(points)
    assert found["effective_rank"] == pytest.approx(rank, rel=1e-6)
    assert found["spread"] == pytest.approx(1)


def test_a_shift_and_a_turn_leave_the_rank_and_a_shift_lowers_the_spread():
    points = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(2)))[0]
    found, moved = spread_of(points), spread_of(points @ turn + 10)
    assert moved["effective_rank"] == pytest.approx(found["effective_rank"], rel=1e-4)
    assert moved["spread"] < 0.1 * found["spread"]


def test_there_is_an_alarm_for_a_point_and_for_a_line_and_none_for_a_cloud():
    cloud = torch.randn(40, 16, generator=torch.Generator().manual_seed(3))
    assert alarm_of(spread_of(cloud)) is None
    assert "embeddings collapse" in str(alarm_of(spread_of(torch.ones(40, 16))))
    assert "effective rank 1.00" in str(alarm_of(spread_of(cloud[:, :1] * torch.ones(16))))
