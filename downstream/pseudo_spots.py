"""Spots made of cells: counts of labelled cells added up before anything is computed from them, with the shares that a head must find."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from pydantic import Field, model_validator
from scipy.sparse import csr_matrix

from corpus.slice import BoolArray, FloatArray, IntArray, StrArray
from downstream.profiles import Profiles
from stofm.config import FrozenModel
from stofm.errors import DataError

LEAST_CELLS = 5  # of a type: fewer can be neither mixed nor held out
MIX_CONCENTRATION = 0.3  # of the Dirichlet distribution of mixes: few types in a spot, each of them in some
LEAST_KEPT = 0.5  # share of a spot's molecules: spots are thinned to between this and all of them


class PseudoSpotConfig(FrozenModel):
    """What pseudo-spots look like."""

    n_spots: int = Field(6000, ge=100)
    cells_per_spot: tuple[int, int] = Field((2, 12), description="Fewest and most cells of a spot.")
    held_out: float = Field(0.2, gt=0, lt=0.5, description="Share of the reference's cells, and of the spots, by which intervals are calibrated.")

    @model_validator(mode="after")
    def _is_a_range(self) -> PseudoSpotConfig:
        if not 1 <= self.cells_per_spot[0] <= self.cells_per_spot[1]:
            raise ValueError(f"cells_per_spot {self.cells_per_spot}; expected fewest <= most, both at least 1")
        return self


@dataclass(frozen=True, eq=False)
class PseudoSpots:
    """Counts, (n, G) CSR molecules, and the true share of each type among the cells of each spot, (n, C) float64."""

    profiles: Profiles
    proportions: FloatArray


def types_of(reference: Profiles) -> StrArray:
    """Return the types that have enough cells, sorted; `DataError` if these are fewer than two."""
    types, sizes = np.unique(reference.labels[reference.labels != ""], return_counts=True)
    kept = types[sizes >= LEAST_CELLS]
    if len(kept) < 2:
        n_labelled = int((reference.labels != "").sum())
        raise DataError(f"reference {reference.name!r}: found {len(kept)} cell types {kept.tolist()} with {LEAST_CELLS} cells or more among "
                        f"{n_labelled} labelled cells; expected two or more. Name the column of types with --label.")  # fmt: skip
    return kept


def split_cells(reference: Profiles, types: StrArray, share: float, rng: Generator) -> tuple[Profiles, Profiles]:
    """Divide the labelled cells, type by type, into those to learn from and those held out; at least one of each type on both sides."""
    is_held_out: BoolArray = np.zeros(len(reference.labels), dtype=bool)
    for one in types.tolist():
        rows = rng.permutation(np.flatnonzero(reference.labels == one))
        is_held_out[rows[: max(1, round(share * len(rows)))]] = True
    is_typed = np.isin(reference.labels, types)
    return reference.taken(np.flatnonzero(is_typed & ~is_held_out)), reference.taken(np.flatnonzero(is_held_out))


def draw_pseudo_spots(reference: Profiles, types: StrArray, n_spots: int, config: PseudoSpotConfig, rng: Generator) -> PseudoSpots:
    """Mix spots from cells: half of them as frequent as in the reference, half by mixes drawn at random, so that rare types occur.

    Spots are then thinned at random, molecule by molecule, as no two spots are read equally deep.
    """
    of_type = [np.flatnonzero(reference.labels == one) for one in types.tolist()]
    lowest, highest = config.cells_per_spot
    n_cells = rng.integers(lowest, highest + 1, n_spots)
    frequencies = np.array([len(rows) for rows in of_type]) / sum(len(rows) for rows in of_type)
    mixes = rng.dirichlet(np.full(len(types), MIX_CONCENTRATION), n_spots)
    mixes[: n_spots // 2] = frequencies
    drawn: list[IntArray] = [np.repeat(np.arange(len(types)), rng.multinomial(n, mix)) for n, mix in zip(n_cells, mixes, strict=True)]
    type_of_cell, spot_of_cell = np.concatenate(drawn), np.repeat(np.arange(n_spots), n_cells)
    sizes = np.array([len(rows) for rows in of_type])
    starts = np.cumsum(sizes) - sizes
    cells = np.concatenate(of_type)[starts[type_of_cell] + rng.integers(0, sizes[type_of_cell])]
    ones = np.ones(len(cells), np.float32)
    counts = csr_matrix(csr_matrix((ones, (spot_of_cell, cells)), shape=(n_spots, len(reference.labels))) @ reference.counts)
    kept = np.repeat(rng.uniform(LEAST_KEPT, 1, n_spots), np.diff(counts.indptr))
    counts.data = rng.binomial(counts.data.astype(np.int64), kept).astype(np.float32)
    counts.eliminate_zeros()
    shares = csr_matrix((ones, (spot_of_cell, type_of_cell)), shape=(n_spots, len(types))).toarray() / n_cells[:, None]
    profiles = Profiles(f"pseudo-spots of {reference.name}", counts, reference.gene_ids, reference.gene_names, np.full(n_spots, ""))
    return PseudoSpots(profiles, shares.astype(np.float64))
