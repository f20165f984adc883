"""10x Visium: a feature matrix of spots, and where they lie in the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from corpus.readers.feature_matrix import read_feature_matrix
from corpus.readers.input import find_file
from corpus.readers.vendor_table import vendor_table
from corpus.slice import SliceSpec

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

SPOT_DIAMETER_UM = 65.0  # what Space Ranger draws; the 55 um of the printed spot do not agree with the 100 um pitch
POSITIONS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]


def read_visium(spec: SliceSpec) -> AnnData:
    """Read a Space Ranger folder of a Visium slide; places are of spots. spatialdata-io would read the pictures along."""
    folder = Path(spec.path)
    counts, genes, barcodes = read_feature_matrix(find_file(folder, "*filtered_feature_bc_matrix.h5", "*filtered_feature_bc_matrix"))
    obs = read_positions(find_file(folder / "spatial", "*tissue_positions*")).reindex(barcodes)
    coords = obs[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(np.float64)
    scales = json.loads(find_file(folder / "spatial", "*scalefactors_json.json").read_text())
    um_per_pixel = scales.get("microns_per_pixel") or SPOT_DIAMETER_UM / scales["spot_diameter_fullres"]
    return vendor_table(counts, genes, obs, coords, technology="Visium", um_per_unit=um_per_pixel, spec=spec, obs_unit="spot")


def read_positions(path: Path) -> pd.DataFrame:
    """Read ``tissue_positions`` of any release (Parquet, csv with or without header), indexed by barcode."""
    import pandas as pd

    if path.suffix == ".parquet":
        return pd.read_parquet(path).set_index("barcode")
    with path.open() as lines:
        has_header = lines.readline().startswith("barcode")
    return pd.read_csv(path, header=0 if has_header else None, names=POSITIONS, dtype={"barcode": str}).set_index("barcode")
