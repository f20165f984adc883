"""Curio Seeker: beads as in Slide-seq, as the AnnData that its pipeline writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from corpus.readers.anndata_h5ad import open_h5ad
from corpus.readers.input import find_file
from corpus.readers.slideseq import UM_PER_UNIT
from corpus.readers.vendor_table import place
from corpus.slice import SliceSpec

if TYPE_CHECKING:
    from anndata import AnnData


def read_curio(spec: SliceSpec) -> AnnData:
    """Read the ``*_anndata.h5ad`` of a Curio folder; spatialdata-io asks for four further files of statistics."""
    return place(open_h5ad(find_file(Path(spec.path), "*_anndata.h5ad")), spec, technology="Curio", um_per_unit=UM_PER_UNIT, obs_unit="bead")
