"""Readers, one file per kind of source, each giving a table of counts with places; `READERS` names them by suffix."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from corpus.readers.anndata_h5ad import read_h5ad
from corpus.readers.spatialdata_zarr import read_spatialdata_zarr
from corpus.readers.table import slice_from_table
from corpus.slice import Slice, SliceSpec
from stofm.errors import DataError, located

if TYPE_CHECKING:
    from anndata import AnnData

READERS: dict[str, Callable[[SliceSpec], AnnData]] = {".h5ad": read_h5ad, ".zarr": read_spatialdata_zarr}


def slice_name(spec: SliceSpec) -> str:
    """Return the name of the slice: as set, else the file's stem with "_" for all but letters, digits, "_" and "-", cut at 60."""
    return spec.slice_id or re.sub(r"[^A-Za-z0-9_-]", "_", Path(spec.path).stem)[:60]


def read_table(spec: SliceSpec) -> AnnData:
    """Read the annotated table of a slice as its file holds it (counts not yet checked)."""
    path = Path(spec.path)
    with located(f"slice {slice_name(spec)!r} ({path})"):
        if not path.exists():
            raise DataError("no such file; expected an AnnData .h5ad or a SpatialData .zarr. Check the path.")
        if path.suffix not in READERS:
            raise DataError(f"found suffix {path.suffix!r}; expected one of {', '.join(sorted(READERS))}. Convert the slice first.")
        return READERS[path.suffix](spec)


def read_slice(spec: SliceSpec) -> Slice:
    """Read and validate one slice.

    Raises
    ------
    DataError
        If the file is missing or unreadable, or breaks the `Slice` contract; the message opens with the slice and its path.
    """
    return slice_of(read_table(spec), spec)


def slice_of(table: AnnData, spec: SliceSpec) -> Slice:
    """Validate a table that was read before; raises as `read_slice`."""
    with located(f"slice {slice_name(spec)!r} ({spec.path})"):
        return slice_from_table(table, spec, slice_id=slice_name(spec))
