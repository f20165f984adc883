"""`stofm check`: what a slice holds, and whether it can be used as it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from corpus.gene_ids import load_gene_tables, map_to_human
from corpus.readers import read_slice, slice_name
from corpus.slice import Slice, SliceSpec, nearest_spacing
from stofm.errors import DataError, located
from tools.console import say, show_error


def run_check(specs: Sequence[SliceSpec]) -> None:
    """Check slices one by one; `DataError` at the end if any of them cannot be used."""
    n_bad = 0
    for spec in specs:
        try:
            _describe(read_slice(spec), spec)
        except DataError as error:
            if len(specs) == 1:
                raise
            show_error(error)
            n_bad += 1
    if n_bad:
        raise DataError(f"{n_bad} of {len(specs)} slices cannot be used as they are; expected all. See the line of each above.")


def _describe(st_slice: Slice, spec: SliceSpec) -> None:
    with located(f"slice {slice_name(spec)!r} ({spec.path})"):
        _, audit = map_to_human(st_slice, load_gene_tables())
    depth = np.asarray(st_slice.counts.sum(axis=1)).ravel()
    n_shared = st_slice.n_cells - len(np.unique(st_slice.coords_um, axis=0))
    source, unmapped = st_slice.source, ", ".join(audit.unmapped_examples[:5])
    say(f"{st_slice.slice_id}: usable")
    say(f"  {st_slice.n_cells} cells, {st_slice.counts.shape[1]} genes, median {np.median(depth):g} molecules a cell, {(depth == 0).sum()} empty")
    say(f"  {st_slice.species}; technology: {source['technology']}; {source['um_per_unit']:g} um per stored unit")
    say(f"  nearest cells {nearest_spacing(st_slice.coords_um):.3g} um apart (median); {n_shared} cells share a place with another")
    say(f"  {audit.n_mapped} of {audit.n_genes} genes map to human genes ({audit.n_merged} merged), {audit.share_of_counts_mapped:.1%} of counts")
    if unmapped:
        say(f"  unmapped genes with most counts: {unmapped}")
    for name, labels in st_slice.labels.items():
        classes = np.unique(labels[labels != ""])
        examples = ", ".join(classes[:8]) + (" ..." if len(classes) > 8 else "")
        say(f"  {name}: {len(classes)} classes ({examples}); {(labels == '').sum()} cells without")
