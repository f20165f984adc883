"""SeekSpace: nuclei placed by spatial barcodes; a feature matrix with the places beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from corpus.readers.feature_matrix import read_feature_matrix
from corpus.readers.input import find_file
from corpus.readers.vendor_table import vendor_table
from corpus.slice import SliceSpec
from stofm.errors import BadSlice

if TYPE_CHECKING:
    from anndata import AnnData


def read_seekspace(spec: SliceSpec) -> AnnData:
    """Read a SeekSpace matrix folder, or the folder around it.

    Nuclei without a row of places have no unique centre under the tissue, so they are left out as no cells of the slice.

    Raises
    ------
    BadSlice
        ``UNIT_UNKNOWN`` without ``spec.um_per_unit``: the files state no scale.
    """
    import pandas as pd

    if spec.um_per_unit is None:
        raise BadSlice("UNIT_UNKNOWN", "SeekSpace places are in pixels of a scale that its files do not state; expected micrometres. Set "
                       "`um_per_unit` for this slice (command line: --um-per-unit), as the vendor gives it for the chip.")  # fmt: skip
    path = find_file(Path(spec.path), "*cell_locations.tsv*", "*/*cell_locations.tsv*")
    counts, genes, barcodes = read_feature_matrix(path.parent)
    places = pd.read_csv(path, sep="\t", dtype={0: str}, index_col=0)
    is_placed = np.isin(barcodes, places.index)
    obs = pd.DataFrame(index=barcodes[is_placed].astype(object))
    coords = places.reindex(obs.index)[["X", "Y"]].to_numpy(np.float64)
    return vendor_table(counts[is_placed], genes, obs, coords, technology="SeekSpace", um_per_unit=spec.um_per_unit, spec=spec)
