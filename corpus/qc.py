"""What a corpus asks of a slice beyond being usable: enough cells, a tissue's geometry and spacing, enough molecules a cell."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from corpus.slice import USUAL_SPACING_UM, BoolArray, FloatArray, Slice, nearest_spacing, without_extent
from stofm.config import FrozenModel
from stofm.errors import BadSlice

FAR_AWAY, TOO_FEW_COUNTS, TOO_FEW_GENES = "far away from the tissue", "too few counts", "too few genes"
FAR_IN_IQRS = 10.0


@dataclass(frozen=True)
class Floors:
    """What is usual for a kind of measured place: spacing in micrometres, and the least cells and molecules worth keeping."""

    spacing_um: tuple[float, float]
    min_cells: int
    min_counts: int = 1


# Word in the technology's name -> what it measures, the first match counts.
KINDS: tuple[tuple[str, str], ...] = (
    ("visium ?hd", "cell"),
    ("visium|spatial transcriptomics", "spot"),
    ("slide-?seq|curio", "bead"),
    ("seekspace", "nucleus"),
    ("xenium|merscope|merfish|cosmx|stereo-?seq|starmap|osmfish|seqfish|verafish", "cell"),
)
FLOORS = {
    "cell": Floors((2.0, 40.0), 200),
    "bead": Floors((2.0, 40.0), 200),
    "nucleus": Floors((2.0, 40.0), 200, min_counts=200),  # the vendor's own
    "spot": Floors((40.0, 300.0), 50),
    "unknown": Floors(USUAL_SPACING_UM, 1),
}


class QualityConfig(FrozenModel):
    """What a slice must have to enter a corpus; each default depends on the technology (see `FLOORS`)."""

    min_cells: int | None = Field(None, ge=1, description="Slices with fewer cells left are refused; default: 200, spots 50, technology unknown 1.")
    min_counts: int | None = Field(None, ge=1, description="Cells with fewer molecules are dropped; default: 1, SeekSpace 200.")
    min_genes: int = Field(1, ge=1, description="Cells with fewer genes are dropped.")
    spacing_um: tuple[float, float] | None = Field(
        None, description="Least and largest median distance to the nearest cell; default: 2-40, spots 40-300, technology unknown 1-100."
    )


def floors_of(technology: str) -> Floors:
    """Return what is usual for a technology, by words in its name."""
    return FLOORS[next((kind for words, kind in KINDS if re.search(words, technology.lower())), "unknown")]


def obs_unit_of(technology: str) -> Literal["cell", "spot", "bead"]:
    """Return what a place of a technology is, by words in its name; a cell if the name says nothing."""
    kind = next((kind for words, kind in KINDS if re.search(words, technology.lower())), "cell")
    return "spot" if kind == "spot" else "bead" if kind == "bead" else "cell"


def for_corpus(st_slice: Slice, config: QualityConfig) -> Slice:
    """Return the slice without the cells that a corpus does not take; they are counted in `Slice.dropped`.

    Raises
    ------
    BadSlice
        ``DEGENERATE_GEOMETRY``, ``UNIT_SUSPECT``, ``EMPTY`` or ``TOO_SMALL``.
    """
    usual = floors_of(str(st_slice.source.get("technology", "unknown")))
    require_extent(st_slice.coords_um)
    low, high = config.spacing_um or usual.spacing_um
    spacing = nearest_spacing(st_slice.coords_um)
    if not low <= spacing <= high:
        raise BadSlice("UNIT_SUSPECT", f"nearest cells are {spacing:.4g} um apart (median); expected {low:g} to {high:g}. Set `um_per_unit` for this "
                       "slice (command line: --um-per-unit), or `quality.spacing_um` if it is as it should be.")  # fmt: skip
    n_in = st_slice.n_cells
    depth, n_genes = np.asarray(st_slice.counts.sum(axis=1)).ravel(), np.diff(st_slice.counts.indptr)
    fates = {
        FAR_AWAY: is_far_away(st_slice.coords_um),
        TOO_FEW_COUNTS: depth < (config.min_counts or usual.min_counts),
        TOO_FEW_GENES: n_genes < config.min_genes,
    }
    is_left = np.ones(n_in, dtype=bool)
    for reason, is_dropped in fates.items():
        st_slice = st_slice.without(is_dropped[is_left], reason)
        is_left &= ~is_dropped
    min_cells = config.min_cells or usual.min_cells
    if st_slice.n_cells < min_cells:
        raise BadSlice("TOO_SMALL", f"found {n_in} cells, {st_slice.n_cells} of them left; expected at least {min_cells}. Remove it from the list, "
                       "or lower `quality.min_cells`.")  # fmt: skip
    return st_slice


def require_extent(coords: FloatArray) -> None:
    """Raise `BadSlice` ``DEGENERATE_GEOMETRY`` if all (n, 2) places lie on one line or one point."""
    spread = np.linalg.svd(coords - coords.mean(axis=0), compute_uv=False)
    if len(coords) < 3 or spread[1] <= 1e-6 * spread[0]:
        raise without_extent(len(coords), "line" if spread[0] > 0 else "point")


def is_far_away(coords: FloatArray) -> BoolArray:
    """Tell which of (n, 2) places lie more than ten interquartile ranges outside the middle half of all, along x or y."""
    low, high = np.percentile(coords, [25, 75], axis=0)
    reach = FAR_IN_IQRS * (high - low)
    return ((coords < low - reach) | (coords > high + reach)).any(axis=1)
