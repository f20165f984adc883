"""A part of a slice held out in one piece, so that no cell of it is a neighbour of many that were trained on; and slices written as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from corpus.cell_order import content_keys
from corpus.slice import BoolArray, Slice, SliceSpec
from corpus.sub_slices import SubSliceConfig, cut_sub_slices
from stofm.durable import replacing
from stofm.errors import BadSlice

if TYPE_CHECKING:
    from anndata import AnnData

LEAST_CELLS = 10  # of a block


def held_out_block(st_slice: Slice, *, share: float, seed: int) -> BoolArray:
    """Choose about `share` of a slice's cells that lie together; (n_cells,) bool, True for them.

    The slice is cut into blocks of equal size as into sub-slices, whatever its pose; `seed` picks the block.

    Raises
    ------
    BadSlice
        ``TOO_SMALL`` if the block, or what it leaves, would have fewer than `LEAST_CELLS` cells.
    """
    n = st_slice.n_cells
    n_block = round(share * n)
    if min(n_block, n - n_block) < LEAST_CELLS:
        raise BadSlice(
            "TOO_SMALL",
            f"slice {st_slice.slice_id!r}: found {n} cells, {n_block} of them to be held out; expected at least {LEAST_CELLS} on both sides. "
            "Use a larger slice, or another `hold_out`.",
        )
    blocks = cut_sub_slices(st_slice.coords_um, content_keys(st_slice.counts), SubSliceConfig(n_cells=n_block, min_cells=1))
    is_held_out = np.zeros(n, dtype=bool)
    is_held_out[blocks[seed % len(blocks)].owned] = True
    return is_held_out


def write_slice(st_slice: Slice, path: Path) -> SliceSpec:
    """Write a slice as ``.h5ad``, whole or not at all, with all that reading it again needs; returns how to read it."""
    with replacing(path) as aside:
        table_of(st_slice).write_h5ad(aside, compression="gzip")
    source = {name: str(st_slice.source[name]) for name in ("donor", "study") if st_slice.source.get(name)}
    return SliceSpec(path=str(path), slice_id=st_slice.slice_id, species=st_slice.species, gene_id_column="ensembl_id", um_per_unit=1.0, **source)


def table_of(st_slice: Slice) -> AnnData:
    """Return a slice as an AnnData table: counts, Ensembl ids, places in micrometres, labels, and what its source says of itself."""
    import pandas as pd
    from anndata import AnnData

    var = pd.DataFrame({"ensembl_id": st_slice.ensembl_ids.astype(object)}, index=pd.Index(st_slice.gene_names.astype(object)))
    var.index = var.index.astype(str)
    obs = pd.DataFrame({name: values.astype(object) for name, values in st_slice.labels.items()}, index=st_slice.source_rows.astype(str))
    facts = {name: st_slice.source[name] for name in ("technology", "tissue", "study", "license", "obs_unit") if name in st_slice.source}
    return AnnData(st_slice.counts, obs=obs, var=var, obsm={"spatial": st_slice.coords_um}, uns={"provenance": {**facts, "unit": "um"}})
