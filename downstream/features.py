"""What a head may read of a slice: the rows of an evaluation's table, from plain counts to the whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from corpus.cell_arrays import CellArray
from corpus.scales import ScaleConfig
from corpus.slice import FloatArray, Slice
from downstream.baselines import pca_features, with_neighbor_mean
from downstream.cost import Cost, measured
from downstream.embedding import Embedder, embed_slice, read_gene_scale
from downstream.representation import represent_cells
from stofm.cell_encoder import CellEncoder, embed_cells
from stofm.fields import EMBEDDING_DIM

PCA, PCA_NEIGHBORS = "PCA", "PCA + neighbour mean"
ENCODER_STARTED, CELL_ENCODER, ENCODER_NEIGHBORS = "cell encoder, not adapted", "cell encoder", "cell encoder + neighbour mean"
NO_VIRTUAL, STOFM = "SToFM, no virtual cells", "SToFM"
PLAIN = (PCA, PCA_NEIGHBORS)  # the others are compared with the better of these
OF_MODEL = (ENCODER_STARTED, CELL_ENCODER, ENCODER_NEIGHBORS, NO_VIRTUAL, STOFM)


@dataclass(frozen=True, eq=False)
class Features:
    """Features of some slices, (n_cells, F) each, and what the whole way from the counts to them cost; or why there are none."""

    of_slices: tuple[FloatArray, ...] = ()
    cost: Cost = field(default_factory=Cost)
    missing: str = ""


Make = Callable[[Sequence[Slice], list[int]], Features]  # of slices, fitted on those with these numbers


@dataclass(frozen=True, eq=False)
class ModelParts:
    """A model, and its parts as the ablations want them.

    Attributes
    ----------
    start : CellEncoder or None
        The cell encoder before its adaptation; where it is None, `no_start` says why.
    without_virtual : Embedder or None
        A model trained without virtual cells; None: the same model, shown none.
    """

    embedder: Embedder
    start: CellEncoder | None
    no_start: str
    without_virtual: Embedder | None


def model_features(st_slice: Slice, parts: ModelParts) -> dict[str, Features]:
    """Return the features of one slice by the name of their row, without those that are means over neighbours."""
    embedder = parts.embedder
    with measured() as reading:
        scale = read_gene_scale(st_slice, embedder)

    def cells_of(encoder: CellEncoder) -> tuple[FloatArray, Cost]:
        with measured() as cost:
            cells = embed_cells(encoder, scale.tokens, cls_token=embedder.vocab.cls_token)
        return cells, reading + cost

    def tissue_of(scales: ScaleConfig) -> Features:
        with measured() as cost:
            cell_repr = represent_cells(scale, cells, replace(embedder, scales=scales))
        return in_rows(cell_repr, encoding + cost)

    def in_rows(values: CellArray, cost: Cost) -> Features:
        rows = np.full((st_slice.n_cells, EMBEDDING_DIM), np.nan, np.float32)
        rows[scale.rows] = values[:]
        return Features((rows,), cost)

    cells, encoding = cells_of(embedder.model.cell_encoder)
    made = {CELL_ENCODER: in_rows(cells, encoding), STOFM: tissue_of(embedder.scales)}
    made[ENCODER_STARTED] = Features(missing=parts.no_start) if parts.start is None else in_rows(*cells_of(parts.start))
    if parts.without_virtual is not None:
        with measured() as cost:
            alone = embed_slice(st_slice, parts.without_virtual).cell_repr
        made[NO_VIRTUAL] = Features((alone,), cost)
    elif embedder.scales.scheme == "published":
        made[NO_VIRTUAL] = Features(missing="`scheme: published` always shows virtual cells; name a model without them (`without_virtual_cells`)")
    else:
        none = embedder.scales.virtual_cells.model_copy(update={"n_max": 0})
        made[NO_VIRTUAL] = tissue_of(embedder.scales.model_copy(update={"virtual_cells": none}))
    return made


class TaskFeatures:
    """The features of a task's slices, row by row; what does not depend on the fold is made once."""

    def __init__(self, slices: Sequence[Slice], of_model: Sequence[dict[str, Features]], peers: Mapping[str, Make]) -> None:
        self.slices, self.of_model = slices, of_model
        self._make: dict[str, Make] = {PCA: _pca, **{name: self._of_model(name) for name in OF_MODEL}, **peers}
        self._make[PCA_NEIGHBORS] = lambda slices, fit_on: _with_neighbors(slices, self.get(PCA, fit_on))
        self._make[ENCODER_NEIGHBORS] = lambda slices, fit_on: _with_neighbors(slices, self.get(CELL_ENCODER, fit_on))
        self._made: dict[tuple[str, tuple[int, ...]], Features] = {}

    @property
    def rows(self) -> list[str]:
        """Names of the rows, the plain ones first, peers last."""
        return list(dict.fromkeys([*PLAIN, *OF_MODEL, *self._make]))

    def get(self, row: str, fit_on: list[int]) -> Features:
        """Return the features of a row; the plain ones are fitted on the slices with these numbers, all others do not depend on the fold."""
        key = row, tuple(fit_on) if row in PLAIN else ()
        if key not in self._made:
            self._made[key] = self._make[row](self.slices, fit_on)
        return self._made[key]

    def _of_model(self, row: str) -> Make:
        def gather(slices: Sequence[Slice], fit_on: list[int]) -> Features:
            parts = [one[row] for one in self.of_model]
            missing = next((one.missing for one in parts if one.missing), "")
            return Features(tuple(array for one in parts for array in one.of_slices), sum((one.cost for one in parts), Cost()), missing)

        return gather


def _pca(slices: Sequence[Slice], fit_on: list[int]) -> Features:
    with measured() as cost:
        features = tuple(pca_features(slices, fit_on=fit_on))
    return Features(features, cost)


def _with_neighbors(slices: Sequence[Slice], alone: Features) -> Features:
    with measured() as cost:
        features = tuple(with_neighbor_mean(one, st_slice.coords_um) for one, st_slice in zip(alone.of_slices, slices, strict=True))
    return Features(features, alone.cost + cost)
