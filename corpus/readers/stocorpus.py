"""The folders of the public data set Toycat/SToCorpus-88M: one AnnData file a slice, gathered from many sources."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from corpus.readers.anndata_h5ad import open_h5ad
from corpus.slice import SliceSpec
from stofm.errors import BadSlice

if TYPE_CHECKING:
    from anndata import AnnData

# Folder of the data set -> what its slices were measured with; the aggregators hold several technologies.
FOLDERS = {"10x": "Xenium", "vz": "MERSCOPE", "nano": "CosMx", "stomicsdb": "Stereo-seq", "sodb": "unknown", "cellxgene": "unknown"}


def read_stocorpus(spec: SliceSpec) -> AnnData:
    """Read one file of the data set, believing none of its notes: counts, unit and genes are tested like those of any slice.

    Coordinates are taken from ``obsm[spec.spatial_key]``, else from the only obsm array of two or three numbers a cell whose
    key speaks of space.

    Raises
    ------
    BadSlice
        ``NO_COORDS`` if there is no such array, or a choice between different ones.
    """
    path = Path(spec.path)
    table = open_h5ad(path)
    notes = {key: table.uns[key] for key in ("bin_type", "bin_size") if key in table.uns}  # whoever says bins is believed
    table.uns.clear()
    table.uns |= notes | {"provenance": {"technology": FOLDERS.get(path.parent.name, "unknown")}}
    if spec.spatial_key not in table.obsm:
        candidates = {key: np.asarray(table.obsm[key]) for key in sorted(table.obsm) if "spatial" in key.lower() and _is_place(table.obsm[key])}
        first = next(iter(candidates.values()), None)
        if first is None or not all(np.array_equal(first, other, equal_nan=True) for other in candidates.values()):
            raise BadSlice("NO_COORDS", f"no coordinates: found obsm keys {sorted(table.obsm)}; expected one for places. Set `spatial_key`.")
        table.obsm[spec.spatial_key] = first
    return table


def _is_place(values: object) -> bool:
    array = np.asarray(values)
    return array.ndim == 2 and array.shape[1] in (2, 3) and np.issubdtype(array.dtype, np.number)
