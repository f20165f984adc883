"""Embeddings put to the proof: some cells are embedded again from the counts in the file, and compared with what it says of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from corpus.readers import open_table, sections_of, slice_of
from corpus.readers.anndata_h5ad import close
from corpus.slice import FloatArray, IntArray, SliceSpec
from downstream.embedding import Embedder, embed_slice, require_embedded, sha256_of
from downstream.tables import written_spec
from stofm.errors import DataError
from stofm.fields import UNS_STOFM

MOST_DISTANCE = 1e-5  # cosine distance


@dataclass(frozen=True, eq=False)
class Verdict:
    """What came of one slice.

    Attributes
    ----------
    n_compared : int
    differing : (n,) int64
        Rows whose embedding is not what the model says of them, or that have one and should not, or the other way.
    """

    n_compared: int
    differing: IntArray


def verify_embedding(path: Path, embedder: Embedder, *, n_cells: int | None, seed: int = 0) -> Verdict:
    """Embed `n_cells` rows of every section of an embedded file again, or all of them, and compare.

    All are compared too where the file's embedding is not the one that its receipt was written for, so that the rows can be named.

    Raises
    ------
    DataError
        If the file holds no embedding, or one of another model.
    """
    table = open_table(SliceSpec(path=str(path)))
    try:
        found = require_embedded(table, path.stem, weights_sha256=embedder.model.weights_sha256)
        receipt = table.uns[UNS_STOFM]
        if "x_stofm_sha256" not in receipt:
            raise DataError(f"slice {path.stem!r}: its receipt is of an older version; expected one with hashes. Embed it again.")
        if sha256_of(found) != str(receipt["x_stofm_sha256"]):
            n_cells = None
        spec = written_spec(path, receipt)
        n_compared, differing = 0, []
        is_expected = np.zeros(table.n_obs, bool)
        for one in sections_of(table, spec):
            st_slice = slice_of(table, one)
            rng = np.random.default_rng(seed)
            some = np.arange(st_slice.n_cells) if n_cells is None else rng.permutation(st_slice.n_cells)[:n_cells]
            result = embed_slice(st_slice, embedder, wanted=some)
            rows = st_slice.source_rows[some]
            differing.append(rows[~_agree(found[rows], result.cell_repr[some])])
            n_compared += len(rows)
            is_expected[st_slice.source_rows[result.is_embedded]] = True
        differing.append(np.flatnonzero(np.isfinite(found).all(axis=1) != is_expected))
    finally:
        close(table)
    return Verdict(n_compared, np.unique(np.concatenate(differing)))


def _agree(found: FloatArray, again: FloatArray) -> np.ndarray:
    """Tell which rows are the same, both NaN or of hardly any cosine distance and like length; (n,) bool."""
    is_none = np.isnan(found).any(axis=1), np.isnan(again).any(axis=1)
    x, y = (np.nan_to_num(one.astype(np.float64)) for one in (found, again))
    length_x, length_y = np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
    is_near = (x * y).sum(axis=1) >= (1 - MOST_DISTANCE) * length_x * length_y
    is_alike = np.isclose(length_x, length_y, rtol=1e-3)
    return np.where(is_none[0] | is_none[1], is_none[0] & is_none[1], is_near & is_alike)
