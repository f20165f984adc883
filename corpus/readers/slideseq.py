"""Slide-seq: a genes by beads table and the places of the beads, as the Broad Institute publishes them."""

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

UM_PER_UNIT = 0.647  # 1 um is 1.5456 units of the bead images


def read_slideseq(spec: SliceSpec) -> AnnData:
    """Read a Slide-seqV2 folder, of either of the two spellings of its files; places are of beads. spatialdata-io has no such reader."""
    import pandas as pd

    folder = Path(spec.path)
    matrix = find_file(folder, "*MappedDGE*.csv*", "*digital_expression*")
    names, counts, beads = read_counts_csv(matrix, sep="\t" if ".txt" in matrix.name else ",")
    places = pd.read_csv(find_file(folder, "*[bB]ead[lL]ocation*.csv*", "*bead_location*.csv*"))
    coords = places.set_index(places.columns[0]).reindex(beads).to_numpy(np.float64)[:, :2]
    genes = pd.DataFrame(index=names.iloc[:, 0].to_numpy())
    obs = pd.DataFrame(index=beads.astype(object))
    return vendor_table(counts.T.tocsr(), genes, obs, coords, technology="Slide-seqV2", um_per_unit=UM_PER_UNIT, spec=spec, obs_unit="bead")
