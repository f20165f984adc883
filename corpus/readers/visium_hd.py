"""10x Visium HD: segmented cells, or the square bins where the user asks for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from corpus.readers.feature_matrix import read_feature_matrix
from corpus.readers.input import find_file
from corpus.readers.vendor_table import vendor_table
from corpus.readers.visium import read_positions
from corpus.slice import FloatArray, SliceSpec, StrArray
from stofm.errors import BadSlice

if TYPE_CHECKING:
    from anndata import AnnData


def read_visium_hd(spec: SliceSpec) -> AnnData:
    """Read a Space Ranger folder of a Visium HD slide; spatialdata-io would load the pictures and all bins first.

    Raises
    ------
    BadSlice
        ``NOT_CELLS`` if the folder has bins only and `spec.bin_size` names none of them.
    """
    import pandas as pd

    folder = Path(spec.path)
    if spec.bin_size is not None:
        return _read_bins(folder / "binned_outputs" / f"square_{spec.bin_size:03d}um", spec)
    cells = folder / "segmented_outputs"
    if not cells.is_dir():
        raise BadSlice("NOT_CELLS", "found square bins only; expected segmented_outputs/ of Space Ranger 4 or later. Segment the cells "
                       "(spaceranger segment), or set `bin_size` (8, 16) to take bins as if they were cells.")  # fmt: skip
    counts, genes, barcodes = read_feature_matrix(find_file(cells, "filtered_feature_cell_matrix.h5", "filtered_feature_cell_matrix"))
    coords = _cell_centroids(cells / "cell_segmentations.geojson", barcodes)
    obs = pd.DataFrame(index=barcodes.astype(object))
    return vendor_table(counts, genes, obs, coords, technology="Visium HD", um_per_unit=_um_per_pixel(cells), spec=spec)


def _read_bins(folder: Path, spec: SliceSpec) -> AnnData:
    if not folder.is_dir():
        raise BadSlice("LAYOUT_UNKNOWN", f"found no binned_outputs/{folder.name}; expected it. Set `bin_size` to a size that was written.")
    counts, genes, barcodes = read_feature_matrix(find_file(folder, "filtered_feature_bc_matrix.h5", "filtered_feature_bc_matrix"))
    obs = read_positions(find_file(folder / "spatial", "tissue_positions*")).reindex(barcodes)
    coords = obs[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(np.float64)
    return vendor_table(counts, genes, obs, coords, technology="Visium HD", um_per_unit=_um_per_pixel(folder), spec=spec, obs_unit="bin")


def _cell_centroids(path: Path, barcodes: StrArray) -> FloatArray:  # (n_cells, 2) float64, pixels
    """Centroids of the outlines, which are keyed by number where the matrix has ``cellid_<number>-1``; NaN without outline."""
    import geopandas
    import pandas as pd
    import shapely

    outlines = geopandas.read_file(path)
    points = shapely.centroid(outlines.geometry.to_numpy())
    places = pd.DataFrame(shapely.get_coordinates(points), index=outlines["cell_id"].astype(int))
    return places.reindex([int(barcode.removeprefix("cellid_").split("-")[0]) for barcode in barcodes.tolist()]).to_numpy()


def _um_per_pixel(folder: Path) -> float:
    return json.loads((folder / "spatial" / "scalefactors_json.json").read_text())["microns_per_pixel"]
