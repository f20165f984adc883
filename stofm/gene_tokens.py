"""Gene tokens of many cells, one cell after the other, each with the level of its gene: the only ragged arrays of the project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stofm.errors import FormatError
from stofm.fields import GENE_LEVELS, GENE_TOKENS, N_TOKENS, PAD_TOKEN

N_LEVELS = 256  # 0 is for tokens of no known level; the last one is a cell with one gene
LEVELS_PER_OCTAVE = 16  # so the levels reach down to a gene with one molecule of 60,000
LEVEL_SHIFT = 32  # in a padded matrix the level lies above the token


@dataclass(frozen=True, eq=False)
class GeneTokens:
    """Gene tokens of n cells, and their levels.

    Attributes
    ----------
    tokens : (sum of lengths,) unsigned integer
    offsets : (n + 1,) int64
        Cell i holds ``tokens[offsets[i]:offsets[i + 1]]``.
    levels : (sum of lengths,) uint8, or None where they are not known
        How much of the cell's molecules are of the gene (`level_of_share`).
    """

    tokens: NDArray[np.integer]
    offsets: NDArray[np.integer]
    levels: NDArray[np.integer] | None = None

    @classmethod
    def of_lengths(cls, tokens: NDArray[np.integer], lengths: NDArray[np.integer], levels: NDArray[np.integer] | None = None) -> GeneTokens:
        """Divide `tokens` and their levels among cells of these lengths, (n,)."""
        return cls(tokens, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), levels)

    @classmethod
    def of_record(cls, record: Mapping[str, np.ndarray], *, with_levels: bool) -> GeneTokens:
        """Return the cells of a record of a token view; `FormatError` if levels are wanted of a corpus that was built before there were any."""
        if with_levels and GENE_LEVELS not in record:
            raise FormatError(f"records without {GENE_LEVELS!r}, which this encoder reads; expected a corpus that has them. Build it again.")
        return cls.of_lengths(record[GENE_TOKENS], record[N_TOKENS], record.get(GENE_LEVELS))

    @classmethod
    def joined(cls, parts: Sequence[GeneTokens]) -> GeneTokens:
        """Return all cells of these, one after the other; all with levels, or none."""
        levels = [one.levels for one in parts if one.levels is not None]
        tokens, lengths = np.concatenate([one.tokens for one in parts]), np.concatenate([one.lengths for one in parts])
        return cls.of_lengths(tokens, lengths, np.concatenate(levels) if levels else None)

    @property
    def lengths(self) -> NDArray[np.integer]:
        """(n,) int64, gene tokens of each cell."""
        return np.diff(self.offsets)

    def take(self, cells: NDArray[np.integer]) -> GeneTokens:
        """Return the cells `cells`, in that order."""
        taken = GeneTokens.of_lengths(self.tokens, self.offsets[cells + 1] - self.offsets[cells])
        source = np.repeat(self.offsets[cells] - taken.offsets[:-1], taken.lengths) + np.arange(taken.offsets[-1])
        return GeneTokens(self.tokens[source], taken.offsets, None if self.levels is None else self.levels[source])

    def padded(self, cells: NDArray[np.integer], *, cls_token: int) -> NDArray[np.int64]:
        """Return the cells `cells` as (B, T) int64 for the encoder: `<cls>` first, padded at the end, levels above (`LEVEL_SHIFT`)."""
        taken = self.take(cells)
        matrix = np.full((len(cells), 1 + int(taken.lengths.max(initial=0))), PAD_TOKEN, dtype=np.int64)
        matrix[:, 0] = cls_token
        entries = taken.tokens.astype(np.int64)
        if taken.levels is not None:
            entries |= taken.levels.astype(np.int64) << LEVEL_SHIFT
        matrix[:, 1:][np.arange(matrix.shape[1] - 1) < taken.lengths[:, None]] = entries
        return matrix


def level_of_share(log_share: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return the level, 1 to `N_LEVELS` - 1, of the natural logarithm of a gene's share of its cell's molecules."""
    levels = log_share * (LEVELS_PER_OCTAVE / np.log(2))
    levels += N_LEVELS - 1
    return np.clip(np.rint(levels, out=levels), 1, N_LEVELS - 1, out=levels).astype(np.uint8)


def share_of_level(level: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the share in the middle of each level; that of 0 means nothing."""
    return np.exp2((level.astype(np.float64) - (N_LEVELS - 1)) / LEVELS_PER_OCTAVE)
