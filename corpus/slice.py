"""The `Slice` contract: counts that are counts, a place in micrometres for every cell, and where it all came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import csr_matrix, issparse
from scipy.spatial import cKDTree

from stofm.config import FrozenModel
from stofm.errors import BadSlice

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.integer]
BoolArray = NDArray[np.bool_]
StrArray = NDArray[np.str_]

Species = Literal["human", "mouse"]
Technology = Literal["anndata", "spatialdata", "stocorpus", "xenium", "merscope", "cosmx", "stereoseq", "visium_hd", "visium", "slideseq",
                     "curio", "seekspace"]  # fmt: skip

UM_PER_UNIT = {"um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0,
               "micrometers": 1.0, "micrometres": 1.0, "nm": 1e-3, "mm": 1e3, "millimeter": 1e3, "millimetre": 1e3}  # fmt: skip
PLACES_ASKED = 20_000
USUAL_SPACING_UM = (1.0, 100.0)  # median distance to the nearest neighbour in every published technology below spot arrays


class SliceSpec(FrozenModel):
    """How to read one slice; everything but the path has a default that is checked against the file."""

    path: str = Field(description="AnnData .h5ad, SpatialData .zarr, or the output folder of an instrument.")
    slice_id: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{1,60}$", description="Name in the corpus; default: the file's stem.")
    technology: Literal["auto"] | Technology = Field("auto", description="Whose layout the files have; auto: told by the names of the files.")
    species: Literal["auto", "human", "mouse"] = Field("auto", description="auto: read from the Ensembl ids or symbols.")
    um_per_unit: float | None = Field(None, gt=0, allow_inf_nan=False, description="Micrometres per unit of the stored coordinates.")
    spatial_key: str = Field("spatial", description="obsm key of the coordinates.")
    counts_layer: str | None = Field(None, description="Layer that holds raw counts; default: X.")
    gene_id_column: str | None = Field(None, description="var column with Ensembl ids; default: found by content.")
    table: str | None = Field(None, description="SpatialData: which table; default: the only one.")
    labels: dict[str, str] = Field(default_factory=dict, description="Label name -> obs column that must exist, e.g. region: layer.")
    donor: str | None = Field(None, description="Donor or animal; splits keep donors apart.")
    study: str | None = Field(None, description="Study or data set; tells donors of one name apart, and splits can keep studies apart.")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="Hash that the input must have, for a build; default: any.")
    section_key: str | None = Field(None, description="obs column, or z, that tells the sections of one file apart: a slice each.")
    section: str | None = Field(None, description="With `section_key`: the one section to read.")
    bin_size: int | None = Field(None, gt=0, description="Read square bins of this size (Stereo-seq: DNBs, Visium HD: um); default: cells only.")


@dataclass(frozen=True, eq=False)
class Slice:
    """One tissue section, validated.

    Attributes
    ----------
    slice_id : str
        Name, unique in a corpus.
    counts : (n_cells, n_genes) CSR, molecules
        Raw counts: finite, non-negative, whole. Where it was asked for, `corpus.readers.count_blocks.StoredCounts` instead.
    gene_names : (n_genes,) str
        As the source spells them.
    ensembl_ids : (n_genes,) str
        Ensembl ids of the slice's species, without version; "" where the source gives none.
    coords_um : (n_cells, 2) float64, micrometres
        Position of every cell, finite.
    species : {"human", "mouse"}
        Whose genes these are.
    labels : {name: (n_cells,) str}
        Annotations such as region and cell_type; "" where missing.
    source : {str: str | float}
        Where the slice came from and how it was read.
    source_rows : (n_cells,) int64
        Row of each cell in the source; default: all of them, in order.
    dropped_rows : {reason: (n,) int64}
        Rows of the source that are not here; with `source_rows` they are all rows of the source (of a section: all of it).
    controls : (n_cells, n_controls) CSR, molecules
        Counts of control and blank features, which are no genes; default: none.
    control_names : (n_controls,) str
    """

    slice_id: str
    counts: csr_matrix
    gene_names: StrArray
    ensembl_ids: StrArray
    coords_um: FloatArray
    species: Species
    labels: Mapping[str, StrArray] = field(default_factory=dict)
    source: Mapping[str, str | float] = field(default_factory=dict)
    source_rows: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    dropped_rows: Mapping[str, IntArray] = field(default_factory=dict)
    controls: csr_matrix | None = None
    control_names: StrArray = field(default_factory=lambda: np.zeros(0, np.str_))

    @property
    def n_cells(self) -> int:
        return int(self.counts.shape[0])

    @property
    def dropped(self) -> dict[str, int]:
        """Cells of the source that are not here, by reason."""
        return {reason: len(rows) for reason, rows in self.dropped_rows.items()}

    def without(self, is_dropped: BoolArray, reason: str) -> Slice:
        """Return the slice without these of its cells, and with their rows under `reason`; `BadSlice` if none is left."""
        if not is_dropped.any():
            return self
        if is_dropped.all():
            raise BadSlice("EMPTY", f"empty slice: found {self.n_cells} cells, none of them left: {reason}; expected some. Remove it from the list.")
        kept, rows = ~is_dropped, np.concatenate([self.dropped_rows.get(reason, np.zeros(0, np.int64)), self.source_rows[is_dropped]])
        return replace(
            self,
            counts=self.counts[kept],
            coords_um=self.coords_um[kept],
            labels={name: values[kept] for name, values in self.labels.items()},
            source_rows=self.source_rows[kept],
            dropped_rows={**self.dropped_rows, reason: rows},
            controls=None if self.controls is None else self.controls[kept],
        )

    def __post_init__(self) -> None:
        n_cells, n_genes = self.counts.shape
        if not len(self.source_rows):
            object.__setattr__(self, "source_rows", np.arange(n_cells))
        if self.controls is None:
            object.__setattr__(self, "controls", csr_matrix((n_cells, 0), dtype=np.float32))
        require_cells(n_cells, n_genes)
        if issparse(self.counts):  # stored ones were tested when they were found
            require_counts(self.counts.data)
        require_coordinates(self.coords_um, n_cells)
        assert self.gene_names.shape == self.ensembl_ids.shape == (n_genes,)
        assert all(values.shape == (n_cells,) for values in [*self.labels.values(), self.source_rows])
        assert self.controls is not None
        assert self.controls.shape == (n_cells, len(self.control_names))


def require_cells(n_cells: int, n_genes: int) -> None:
    """Raise `BadSlice` if there is nothing to read."""
    if n_cells == 0 or n_genes == 0:
        raise BadSlice("EMPTY", f"empty slice: found {n_cells} cells and {n_genes} genes; expected at least one of each. Remove it from the list.")


def require_counts(values: NDArray[np.number]) -> None:
    """Raise `BadSlice` unless every entry is a finite, non-negative whole number."""
    is_bad = ~np.isfinite(values) | (values < 0) | (values != np.floor(values))
    if is_bad.any():
        raise BadSlice(
            "NOT_COUNTS",
            f"counts: found {values[is_bad][0]:g} among {int(is_bad.sum())} entries that are no counts; expected raw molecule counts "
            "(whole, not negative). Name the layer that holds them with `counts_layer`.",
        )


def require_coordinates(coords: FloatArray, n_cells: int) -> None:
    """Raise `BadSlice` unless `coords` is one finite (x, y) per cell."""
    if coords.shape != (n_cells, 2):
        raise BadSlice("NO_COORDS", f"coordinates have shape {coords.shape}; expected ({n_cells}, 2). Keep x and y of one section in the file.")
    n_bad = int((~np.isfinite(coords)).any(axis=1).sum())
    if n_bad:
        first = int(np.flatnonzero((~np.isfinite(coords)).any(axis=1))[0])
        raise BadSlice("NO_COORDS", f"coordinates: found NaN or infinity in {n_bad} cells, first in row {first}; expected a place for "
                       "every cell. Drop those cells, or place them.")  # fmt: skip


def to_micrometres(coords: FloatArray, *, declared_unit: str | None, um_per_unit: float | None) -> tuple[FloatArray, float]:
    """Convert coordinates to micrometres by the setting, else by the unit the file declares, else if their spacing is that of cells.

    Returns
    -------
    (n_cells, 2) float64, micrometres ; float, micrometres per stored unit

    Raises
    ------
    BadSlice
        ``UNIT_UNKNOWN`` if the file declares a unit without a length (pixels); ``UNIT_SUSPECT`` if it declares none at all and
        the median distance to the nearest neighbour is not one of cells in micrometres; ``DEGENERATE_GEOMETRY`` if there is no such neighbour.
    """
    remedy = "Set `um_per_unit` for this slice (command line: --um-per-unit)."
    if um_per_unit is not None:
        return coords * um_per_unit, um_per_unit
    word = declared_unit.split()[0].lower().strip("(),;") if declared_unit and declared_unit.strip() else None
    if word in UM_PER_UNIT:
        return coords * UM_PER_UNIT[word], UM_PER_UNIT[word]
    spacing = nearest_spacing(coords)
    if word and (word.startswith("pixel") or word == "px"):
        raise BadSlice(
            "UNIT_UNKNOWN", f"coordinates are declared as {declared_unit!r}, nearest cells {spacing:.4g} apart; expected micrometres. {remedy}"
        )
    if not spacing:
        raise without_extent(len(coords), "point")
    low, high = USUAL_SPACING_UM
    if not low <= spacing <= high:
        raise BadSlice(
            "UNIT_SUSPECT",
            f"coordinates declare no unit and nearest cells are {spacing:.4g} apart (median); expected {low:g} to {high:g} micrometres. {remedy}",
        )
    return coords, 1.0


def without_extent(n_cells: int, where: str) -> BadSlice:
    """Return the ``DEGENERATE_GEOMETRY`` of cells that all lie on one line or point."""
    return BadSlice("DEGENERATE_GEOMETRY", f"all {n_cells} cells lie on one {where}; expected a tissue. Check that x and y are the right columns.")


def nearest_spacing(coords: FloatArray) -> float:
    """Return the median distance from a cell to its nearest neighbour at another place; 0 if there is no second place.

    In large slices the median is taken over about `PLACES_ASKED` places, spread evenly over all.
    """
    places = np.unique(coords[np.isfinite(coords).all(axis=1)], axis=0)
    if len(places) < 2:
        return 0.0
    asked = places[:: max(1, len(places) // PLACES_ASKED)]
    return float(np.median(cKDTree(places).query(asked, k=2)[0][:, 1]))
