"""The truth of a corpus: one immutable zarr v3 store per slice, zipped uncompressed, the same bytes whenever it is written."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix

from corpus.gene_ids import MARKERS, GeneAudit, GeneTables, map_to_human
from corpus.gene_vocab import merge_genes
from corpus.slice import FloatArray, IntArray, Slice, StrArray
from stofm.durable import replacing
from stofm.errors import FormatError

if TYPE_CHECKING:
    from anndata import AnnData

TRUTH_FORMAT = "stofm-truth/1"
SOURCE_ROW = "source_row"  # column of obs


@dataclass(frozen=True, eq=False)
class SliceTruth:
    """A slice as the corpus keeps it: counts of human genes, in the order of its source.

    Attributes
    ----------
    counts : (n_cells, n_genes) CSR, molecules
    human_ids : (n_genes,) str
        Ensembl ids, unique, sorted.
    symbols : (n_genes,) str
        As the source spells them (the first of those merged).
    coords_um : (n_cells, 2) float64, micrometres
    labels : {name: (n_cells,) str}
        "" where missing.
    source_rows : (n_cells,) int64
        Row of each cell in the source.
    """

    slice_id: str
    counts: csr_matrix
    human_ids: StrArray
    symbols: StrArray
    coords_um: FloatArray
    labels: Mapping[str, StrArray]
    source: Mapping[str, str | float]
    source_rows: IntArray


def truth_of(st_slice: Slice, tables: GeneTables, markers: Collection[str] = MARKERS) -> tuple[SliceTruth, GeneAudit]:
    """Bring a slice to human genes; raises as `map_to_human`."""
    ids, audit = map_to_human(st_slice, tables, markers)
    counts, human_ids = merge_genes(st_slice.counts, ids)
    first_source = {gene: name for gene, name in zip(ids[::-1].tolist(), st_slice.gene_names[::-1].tolist(), strict=True) if gene}
    symbols = np.array([first_source[gene] for gene in human_ids.tolist()])
    source = {**st_slice.source, "species": st_slice.species}
    return SliceTruth(st_slice.slice_id, counts, human_ids, symbols, st_slice.coords_um, st_slice.labels, source, st_slice.source_rows), audit


def write_truth(path: Path, truth: SliceTruth) -> None:
    """Write a slice to a zip of a zarr v3 AnnData store, whole or not at all."""
    import anndata
    import pandas as pd

    largest = truth.counts.data.max(initial=0)
    table = anndata.AnnData(
        X=truth.counts.astype(np.uint16 if largest <= np.iinfo(np.uint16).max else np.uint32),
        obs=pd.DataFrame(
            {SOURCE_ROW: truth.source_rows.astype(np.uint32), **{name: pd.Categorical(values) for name, values in truth.labels.items()}},
            index=_row_names(truth.counts.shape[0]),
        ),
        var=pd.DataFrame({"symbol": truth.symbols.astype(object)}, index=truth.human_ids.astype(object)),
        obsm={"spatial": truth.coords_um},
        uns={"format": TRUTH_FORMAT, "slice_id": truth.slice_id, "source": dict(truth.source)},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=".", suffix=".part") as scratch:
        with anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=True), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Consolidated metadata", UserWarning)  # nothing of ours reads it
            table.write_zarr(Path(scratch) / "cells.zarr")
        with replacing(path) as aside:
            _zip_folder(Path(scratch) / "cells.zarr", aside)


def read_truth(path: Path) -> SliceTruth:
    """Read what `write_truth` wrote; `FormatError` if it is missing, damaged or of another format."""
    import anndata
    from zarr.storage import ZipStore

    if not zipfile.is_zipfile(path):
        raise FormatError(f"{path}: missing or no zip file; expected a slice of a corpus. Build the corpus again.")
    try:
        with ZipStore(path, mode="r") as store:
            table: AnnData = anndata.read_zarr(store)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path}: {error}; expected a slice of a corpus. Build the corpus again.") from error
    if table.uns.get("format") != TRUTH_FORMAT:
        raise FormatError(f"{path}: found format {table.uns.get('format')!r}; expected {TRUTH_FORMAT!r}. Build the corpus again.")
    return SliceTruth(
        slice_id=str(table.uns["slice_id"]),
        counts=csr_matrix(table.X),
        human_ids=table.var_names.to_numpy().astype(str),
        symbols=table.var["symbol"].to_numpy().astype(str),
        coords_um=np.asarray(table.obsm["spatial"]),
        labels={name: table.obs[name].astype(str).to_numpy().astype(str) for name in table.obs if name != SOURCE_ROW},
        source=table.uns["source"],
        source_rows=table.obs[SOURCE_ROW].to_numpy().astype(np.int64),
    )


def _zip_folder(folder: Path, path: Path) -> None:
    """Zip a folder's files in sorted order with fixed times, so that equal contents give equal bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            archive.writestr(zipfile.ZipInfo(str(file.relative_to(folder)), date_time=(1980, 1, 1, 0, 0, 0)), file.read_bytes())


def _row_names(n_cells: int) -> list[str]:
    return [str(row) for row in range(n_cells)]
