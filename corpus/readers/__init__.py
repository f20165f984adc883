"""Readers, one file per technology, each giving a table of counts with places; `TECHNOLOGIES` names them, `LAYOUTS` tells them apart."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from corpus.qc import QualityConfig, for_corpus
from corpus.readers.anndata_h5ad import close, fetch, read_h5ad
from corpus.readers.cosmx import read_cosmx
from corpus.readers.curio import read_curio
from corpus.readers.input import reading
from corpus.readers.merscope import read_merscope
from corpus.readers.sections import section_specs
from corpus.readers.seekspace import read_seekspace
from corpus.readers.slideseq import read_slideseq
from corpus.readers.spatialdata_zarr import read_spatialdata_zarr
from corpus.readers.stereoseq import read_stereoseq
from corpus.readers.stocorpus import FOLDERS, read_stocorpus
from corpus.readers.table import find_places, provenance_of, slice_from_table
from corpus.readers.visium import read_visium
from corpus.readers.visium_hd import read_visium_hd
from corpus.readers.xenium import read_xenium
from corpus.slice import Slice, SliceSpec, Technology
from stofm.errors import BadSlice, located

if TYPE_CHECKING:
    from anndata import AnnData

TECHNOLOGIES: dict[Technology, Callable[[SliceSpec], AnnData]] = {
    "anndata": read_h5ad,
    "spatialdata": read_spatialdata_zarr,
    "stocorpus": read_stocorpus,
    "xenium": read_xenium,
    "merscope": read_merscope,
    "cosmx": read_cosmx,
    "stereoseq": read_stereoseq,
    "visium_hd": read_visium_hd,
    "visium": read_visium,
    "slideseq": read_slideseq,
    "curio": read_curio,
    "seekspace": read_seekspace,
}
UNITS_OF_THE_FILE = {"anndata", "spatialdata", "stocorpus"}  # all others give micrometres
SUFFIXES: dict[str, Technology] = {
    ".h5ad": "anndata", ".zarr": "spatialdata", ".gef": "stereoseq", ".cgef": "stereoseq", ".gem": "stereoseq", ".gem.gz": "stereoseq",
}  # fmt: skip
# Technology -> patterns of file names, one of each line; a folder is of the technology all of whose lines it has.
LAYOUTS: dict[Technology, tuple[tuple[str, ...], ...]] = {
    "xenium": (("*cell_feature_matrix.h5", "*cell_feature_matrix"), ("*cells.parquet", "*cells.csv.gz", "*cells.csv")),
    "merscope": (("*cell_by_gene.csv*", "*/*cell_by_gene.csv*"), ("*cell_metadata.csv*", "*/*cell_metadata.csv*")),
    "cosmx": (("*exprMat_file.csv*",), ("*metadata_file.csv*",)),
    "stereoseq": (("*gef", "*.gem", "*.gem.gz", "041.cellcut/*.gef", "feature_expression/*gef", "*cellbin*.h5ad"),),
    "visium_hd": (("segmented_outputs", "binned_outputs"),),
    "visium": (("*filtered_feature_bc_matrix.h5", "*filtered_feature_bc_matrix"), ("spatial/*tissue_positions*",)),
    "slideseq": (("*[bB]ead[lL]ocation*.csv*", "*bead_location*.csv*"), ("*MappedDGE*.csv*", "*digital_expression*")),
    "curio": (("*_anndata.h5ad",), ("*_cluster_assignment.txt",)),
    "seekspace": (("*cell_locations.tsv*", "*/*cell_locations.tsv*"),),
}


def slice_name(spec: SliceSpec) -> str:
    """Return the name of the slice: as set, else the file's stem with "_" for all but letters, digits, "_" and "-", cut at 60."""
    path = Path(spec.path)
    return spec.slice_id or re.sub(r"[^A-Za-z0-9_-]", "_", path.parent.name if path.name == "outs" else path.stem)[:60]


def technology_of(spec: SliceSpec) -> Technology:
    """Return whose layout a path has: as set, else by its suffix, else by the names of the files in it.

    Raises
    ------
    BadSlice
        ``LAYOUT_UNKNOWN`` or ``LAYOUT_AMBIGUOUS``, with the technologies to choose from.
    """
    if spec.technology != "auto":
        return spec.technology
    path = Path(spec.path)
    suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
    if suffix == ".h5ad" and path.parent.name in FOLDERS and "stocorpus" in path.parent.parent.name.lower():
        return "stocorpus"
    if suffix is not None:
        return SUFFIXES[suffix]
    if not path.is_dir():
        raise BadSlice("LAYOUT_UNKNOWN", f"found suffix {path.suffix!r}; expected one of {', '.join(SUFFIXES)}, or an instrument's folder. "
                       "Convert the slice first.")  # fmt: skip
    folder = _output_folder(path)
    found = [name for name, lines in LAYOUTS.items() if all(any(any(folder.glob(pattern)) for pattern in line) for line in lines)]
    if len(found) != 1:
        code, what = ("LAYOUT_AMBIGUOUS", f"files of {' and '.join(found)}") if found else ("LAYOUT_UNKNOWN", "files of no known layout")
        raise BadSlice(code, f"found {what}; expected those of one of {', '.join(LAYOUTS)}. Set `technology`, or give the folder of one slice.")
    return found[0]


def _output_folder(path: Path) -> Path:
    """The folder ``outs`` of a path, where 10x pipelines put what they write, if there is one."""
    return path / "outs" if (path / "outs").is_dir() else path


def open_table(spec: SliceSpec) -> AnnData:
    """Read the annotated table of a slice as its files hold it (counts not yet checked); matrices may stay on disk until `close`."""
    path = Path(spec.path)
    with located(f"slice {slice_name(spec)!r} ({path})"):
        if not path.exists():
            raise BadSlice("INPUT_MISSING", "no such file; expected an AnnData .h5ad, a SpatialData .zarr or an instrument's folder. Check the path.")
        technology = technology_of(spec)
        spec = spec.model_copy(update={"path": str(_output_folder(path))})
        with reading(f"output of {technology}", expected="whole files, as the instrument wrote them", remedy="Fetch them again."):
            return TECHNOLOGIES[technology](spec)


def read_table(spec: SliceSpec) -> AnnData:
    """Read the annotated table of a slice into memory; raises as `open_table`."""
    table = open_table(spec)
    with located(f"slice {slice_name(spec)!r} ({spec.path})"), reading("AnnData", expected="a whole file", remedy="Fetch or write it again."):
        in_memory = fetch(table)
        close(table)
        return in_memory


def read_slice(spec: SliceSpec, quality: QualityConfig | None = None) -> Slice:
    """Read and validate one slice; with `quality`, as a corpus takes it.

    Raises
    ------
    BadSlice
        If the file is missing or unreadable, breaks the `Slice` contract, holds several sections or is below the floors of
        `quality`; the message opens with the slice and its path.
    """
    table = open_table(spec)
    try:
        st_slice = slice_of(table, spec)
    finally:
        close(table)
    with located(f"slice {slice_name(spec)!r} ({spec.path})"):
        return st_slice if quality is None else for_corpus(st_slice, quality)


def read_slices(spec: SliceSpec, quality: QualityConfig | None = None) -> list[Slice]:
    """Read every section of a file as a slice; raises as `read_slice`, for the first that is bad."""
    return [read_slice(one, quality) for one in split_sections(spec)]


def split_sections(spec: SliceSpec) -> list[SliceSpec]:
    """Return the specification of every section of a file, each of which `read_slice` reads alone; [spec] without `section_key`."""
    if spec.section_key is None or spec.section is not None:
        return [spec]
    table = open_table(spec)
    try:
        return sections_of(table, spec)
    finally:
        close(table)


def sections_of(table: AnnData, spec: SliceSpec) -> list[SliceSpec]:
    """As `split_sections`, of a table that was read before."""
    with located(f"slice {slice_name(spec)!r} ({spec.path})"):
        return section_specs(table, find_places(table, spec.spatial_key), spec, name=slice_name(spec))


def slice_of(table: AnnData, spec: SliceSpec, *, is_stored: bool = False) -> Slice:
    """Validate a table that was read before, with `is_stored` as in `slice_from_table`; raises as `read_slice`."""
    with located(f"slice {slice_name(spec)!r} ({spec.path})"):
        converted = None if technology_of(spec) in UNITS_OF_THE_FILE else float(provenance_of(table.uns)["um_per_unit"])
        return slice_from_table(table, spec, slice_id=slice_name(spec), converted=converted, is_stored=is_stored)
