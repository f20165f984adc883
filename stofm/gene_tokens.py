"""Gene tokens of many cells, one cell after the other: the only ragged array of the project."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stofm.fields import PAD_TOKEN


@dataclass(frozen=True, eq=False)
class GeneTokens:
    """Gene tokens of n cells.

    Attributes
    ----------
    tokens : (sum of lengths,) unsigned integer
    offsets : (n + 1,) int64
        Cell i holds ``tokens[offsets[i]:offsets[i + 1]]``.
    """

    tokens: NDArray[np.integer]
    offsets: NDArray[np.integer]

    @classmethod
    def of_lengths(cls, tokens: NDArray[np.integer], lengths: NDArray[np.integer]) -> GeneTokens:
        """Divide `tokens` among cells of these lengths, (n,)."""
        return cls(tokens, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    @property
    def lengths(self) -> NDArray[np.integer]:
        """(n,) int64, gene tokens of each cell."""
        return np.diff(self.offsets)

    def take(self, cells: NDArray[np.integer]) -> GeneTokens:
        """Return the cells `cells`, in that order."""
        taken = GeneTokens.of_lengths(self.tokens, self.offsets[cells + 1] - self.offsets[cells])
        source = np.repeat(self.offsets[cells] - taken.offsets[:-1], taken.lengths) + np.arange(taken.offsets[-1])
        return GeneTokens(self.tokens[source], taken.offsets)

    def padded(self, cells: NDArray[np.integer], *, cls_token: int) -> NDArray[np.int64]:
        """Return the cells `cells` as (B, T) int64 for the encoder: `<cls>` first, padded at the end."""
        taken = self.take(cells)
        matrix = np.full((len(cells), 1 + int(taken.lengths.max(initial=0))), PAD_TOKEN, dtype=np.int64)
        matrix[:, 0] = cls_token
        matrix[:, 1:][np.arange(matrix.shape[1] - 1) < taken.lengths[:, None]] = taken.tokens
        return matrix
