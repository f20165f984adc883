"""10x Xenium: the cell by feature matrix and the table of cells, whose centroids are micrometres."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from corpus.readers.feature_matrix import read_feature_matrix
from corpus.readers.input import find_file
from corpus.readers.vendor_table import vendor_table
from corpus.slice import SliceSpec

if TYPE_CHECKING:
    from anndata import AnnData


def read_xenium(spec: SliceSpec) -> AnnData:
    """Read a Xenium output folder.

    Two of its files are enough. spatialdata-io asks for ``experiment.xenium`` as well, which is missing from many published
    folders, and reads boundaries, transcripts or images along.
    """
    import pandas as pd

    folder = Path(spec.path)
    counts, genes, barcodes = read_feature_matrix(find_file(folder, "*cell_feature_matrix.h5", "*cell_feature_matrix"))
    path = find_file(folder, "*cells.parquet", "*cells.csv.gz", "*cells.csv")
    cells = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype={"cell_id": str})
    ids = [one.decode() if isinstance(one, bytes) else str(one) for one in cells["cell_id"]]  # number, text or bytes, by release
    named = [barcode.removeprefix("Cell_") for barcode in barcodes.tolist()]  # some exports call the cells so, in the matrix alone
    obs = cells.drop(columns="cell_id").set_axis(pd.Index(ids, dtype=object)).reindex(named)
    coords = obs[["x_centroid", "y_centroid"]].to_numpy(float)
    return vendor_table(counts, genes, obs, coords, technology="Xenium", um_per_unit=1.0, spec=spec)
