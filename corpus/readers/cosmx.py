"""NanoString CosMx flat files: expression and metadata as csv, keyed by field of view and cell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from corpus.readers.counts_csv import read_counts_csv
from corpus.readers.input import find_file
from corpus.readers.vendor_table import vendor_table
from corpus.slice import SliceSpec

if TYPE_CHECKING:
    from anndata import AnnData

UM_PER_PIXEL = 0.12028
KEYS = ("fov", "cell_ID")


def read_cosmx(spec: SliceSpec) -> AnnData:
    """Read a folder of CosMx flat files.

    Places are the global ones: in the local ones, which spatialdata-io takes, all fields of view lie on top of each other.
    Cell 0 of a field holds the molecules outside cells; it is no cell, and left out.
    """
    import pandas as pd

    folder = Path(spec.path)
    keys, counts, names = read_counts_csv(find_file(folder, "*exprMat_file.csv*"), keys=[*KEYS, "cell", "cell_id"])
    cells = pd.read_csv(find_file(folder, "*metadata_file.csv*"), dtype=dict.fromkeys(KEYS, str))
    is_cell = (keys["cell_ID"] != "0").to_numpy()
    obs = cells.set_index(cells["fov"] + "_" + cells["cell_ID"]).reindex((keys["fov"] + "_" + keys["cell_ID"])[is_cell].to_numpy())
    coords = obs[["CenterX_global_px", "CenterY_global_px"]].to_numpy(np.float64)
    genes = pd.DataFrame(index=names)
    return vendor_table(counts[is_cell], genes, obs, coords, technology="CosMx", um_per_unit=UM_PER_PIXEL, spec=spec)
