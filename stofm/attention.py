"""Attention whose scores add up from layer to layer: the pair state."""

from __future__ import annotations

from torch import Tensor, nn

from stofm.pair_state import PairState


class PairStateAttention(nn.Module):
    """Multi-head attention that adds its scores to the pair state and attends by the sum.

    Notes
    -----
    Source: SE(2) transformer of SToFM (after Uni-Mol): ``S_l = S_{l-1} + q k^T / sqrt(D/H)``, ``S_0`` the pair bias,
    attention ``softmax(S_l) v``.
    """

    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.scale, self.dropout = n_heads, (width // n_heads) ** -0.5, dropout
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.xavier_uniform_(projection.weight, gain=2**-0.5)
            nn.init.zeros_(projection.bias)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, cells: Tensor, state: PairState) -> Tensor:
        """Attend; (T, D) float, the cells of all sub-slices one after the other, to their update (T, D)."""
        q, k, v = (project(cells).unflatten(-1, (self.n_heads, -1)) for project in (self.q_proj, self.k_proj, self.v_proj))  # each (T, H, D/H)
        mixed = state.attend(q * self.scale, k, v, dropout=self.dropout if self.training else 0.0)
        return self.out_proj(mixed.flatten(1))
