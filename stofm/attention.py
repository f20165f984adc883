"""Attention whose scores add up from layer to layer: the pair state."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PairStateAttention(nn.Module):
    """Multi-head attention that adds its scores to the pair state and attends by the sum.

    Notes
    -----
    Source: SE(2) transformer of SToFM (after Uni-Mol): ``S_l = S_{l-1} + q k^T / sqrt(D/H)``, ``S_0`` the pair bias,
    attention ``softmax(S_l) v``.
    """

    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.scale = n_heads, (width // n_heads) ** -0.5
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.dropout = nn.Dropout(dropout)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.xavier_uniform_(projection.weight, gain=2**-0.5)
            nn.init.zeros_(projection.bias)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, cells: Tensor, pair_state: Tensor) -> tuple[Tensor, Tensor]:
        """Attend.

        Parameters
        ----------
        cells : (B, N, D) float
        pair_state : (B, H, N, N) float
            -inf in the columns of padding.

        Returns
        -------
        (B, N, D) float, update of the cells ; (B, H, N, N) float, pair state after this layer
        """
        B, N, D = cells.shape
        H = self.n_heads
        q = (self.q_proj(cells) * self.scale).view(B, N, H, -1).transpose(1, 2).reshape(B * H, N, -1)  # (B*H, N, D/H)
        k, v = (project(cells).view(B, N, H, -1).transpose(1, 2).reshape(B * H, N, -1) for project in (self.k_proj, self.v_proj))
        scores = torch.baddbmm(pair_state.reshape(B * H, N, N), q, k.mT)  # (B*H, N, N)
        mixed = self.dropout(scores.softmax(-1)) @ v  # (B*H, N, D/H)
        return self.out_proj(mixed.view(B, H, N, -1).transpose(1, 2).reshape(B, N, D)), scores.view(B, H, N, N)
