"""Vizgen MERSCOPE: cell by gene and cell metadata as csv, centres in micrometres, in all releases and as re-segmented."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from corpus.readers.counts_csv import read_counts_csv
from corpus.readers.input import find_file
from corpus.readers.vendor_table import vendor_table
from corpus.slice import SliceSpec

if TYPE_CHECKING:
    from anndata import AnnData


def read_merscope(spec: SliceSpec) -> AnnData:
    """Read a MERSCOPE output folder, or that of one segmentation inside it.

    Cell ids have up to 39 digits and are read as text: as numbers, some would become equal. spatialdata-io wants boundaries
    and images beside the two tables, under names that the first releases do not have.
    """
    import pandas as pd

    folder = Path(spec.path)
    ids, counts, names = read_counts_csv(find_file(folder, "*cell_by_gene.csv*", "*/*cell_by_gene.csv*"))
    path = find_file(folder, "*cell_metadata.csv*", "*/*cell_metadata.csv*")
    cells = pd.read_csv(path, dtype={0: str})
    obs = cells.set_index(cells.columns[0]).reindex(ids.iloc[:, 0].to_numpy())
    obs.index.name = None
    return vendor_table(
        counts, pd.DataFrame(index=names), obs, obs[["center_x", "center_y"]].to_numpy(float), technology="MERSCOPE", um_per_unit=1.0, spec=spec
    )
