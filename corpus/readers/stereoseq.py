"""Stereo-seq: cell bins as GEF, AnnData or GEM; square bins only where the user asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix

from corpus.readers.anndata_h5ad import open_h5ad
from corpus.readers.input import find_file
from corpus.readers.vendor_table import ObsUnit, place, vendor_table
from corpus.slice import IntArray, SliceSpec
from stofm.errors import BadSlice

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

UM_PER_DNB = 0.5  # DNBs lie 500 nm apart
FILES = ("*cellbin*.gef", "*cgef", "*cellbin*.h5ad", "*cellbin*.gem*", "*.gef", "*.h5ad", "*.gem", "*.gem.gz")
FOLDERS = ("", "041.cellcut/", "outs/feature_expression/", "feature_expression/")  # of SAW 7 and 8
CELL_COLUMNS = ("CellID", "cell", "cell_id", "label")


def read_stereoseq(spec: SliceSpec) -> AnnData:
    """Read a Stereo-seq file or folder; places are centres of cells.

    spatialdata-io reads the folders of SAW 7 alone, cell bins together with pictures and square bins.

    Raises
    ------
    BadSlice
        ``NOT_CELLS`` if the file has square bins, or DNBs without cells, and `spec.bin_size` is not set.
    """
    path = Path(spec.path)
    if path.is_dir():
        path = find_file(path, *(folder + name for name in FILES for folder in FOLDERS))
    if path.suffix == ".h5ad":
        table = open_h5ad(path)
        return place(table, spec, technology="Stereo-seq", um_per_unit=UM_PER_DNB, obs_unit="bin" if spec.bin_size else "cell")
    return _read_gef(path, spec) if path.name.endswith("gef") else _read_gem(path, spec)


def _read_gef(path: Path, spec: SliceSpec) -> AnnData:
    import h5py
    import pandas as pd

    with h5py.File(path) as file:
        if "cellBin" not in file:
            if spec.bin_size is None:
                raise _not_cells(f"square bins ({', '.join(sorted(file.get('geneExp', ())))})")
            level = file["geneExp/bin1"]
            genes, points = level["gene"][:], level["expression"][:]
            gene_of = np.repeat(genes[genes.dtype.names[-3]].astype(str), genes["count"])  # "gene", or "geneName" after an id
            return _bins(pd.DataFrame({"gene": gene_of, "x": points["x"], "y": points["y"], "count": points["count"]}), spec)
        cells, genes, entries = (file[f"cellBin/{name}"][:] for name in ("cell", "gene", "cellExp"))
    counts = csr_matrix((entries["count"], entries["geneID"].astype(np.int64), np.append(cells["offset"], len(entries))),
                        shape=(len(cells), len(genes)))  # fmt: skip
    obs = pd.DataFrame(
        {name: cells[name] for name in ("dnbCount", "area") if name in cells.dtype.names}, index=cells["id"].astype(str).astype(object)
    )
    names = pd.DataFrame(index=genes["geneName"].astype(str).astype(object))
    if "geneID" in genes.dtype.names:
        names["gene_ids"] = genes["geneID"].astype(str).astype(object)
    coords = np.column_stack([cells["x"], cells["y"]])
    return vendor_table(counts, names, obs, coords, technology="Stereo-seq", um_per_unit=UM_PER_DNB, spec=spec)


def _read_gem(path: Path, spec: SliceSpec) -> AnnData:
    import pandas as pd

    found = pd.read_csv(path, sep="\t", comment="#", nrows=0).columns
    cell = next((name for name in CELL_COLUMNS if name in found), None)
    if cell is None and spec.bin_size is None:
        raise _not_cells("DNBs without cells")
    count = next((name for name in ("MIDCount", "MIDCounts", "UMICount") if name in found), "MIDCount")
    gene = "geneName" if "geneName" in found else "geneID"
    columns: dict[str, Any] = {gene: "category", "x": np.int32, "y": np.int32, count: np.uint32, **({cell: np.int64} if cell else {})}
    points = pd.read_csv(path, sep="\t", comment="#", usecols=list(columns), dtype=columns, na_filter=False).rename(
        columns={gene: "gene", count: "count"}
    )
    if cell is None or spec.bin_size is not None:
        return _bins(points, spec)
    points = points[points[cell] > 0]  # 0 is what lies in no cell
    codes, ids = pd.factorize(points[cell], sort=True)
    coords = points.groupby(codes)[["x", "y"]].mean().to_numpy()
    return _grouped(points, codes, np.asarray(ids).astype(str), coords, spec, obs_unit="cell")


def _bins(points: pd.DataFrame, spec: SliceSpec) -> AnnData:
    """Sum DNBs to squares of `spec.bin_size`, placed at their middles."""
    import pandas as pd

    size = spec.bin_size or 1
    x, y = points["x"].to_numpy(np.int64) // size, points["y"].to_numpy(np.int64) // size
    codes, bins = pd.factorize(x << 32 | y, sort=True)
    coords = (np.column_stack([bins >> 32, bins & 0xFFFFFFFF]) + 0.5) * size
    return _grouped(points, codes, np.asarray(bins).astype(str), coords, spec, obs_unit="bin")


def _grouped(points: pd.DataFrame, codes: IntArray, ids: np.ndarray, coords: np.ndarray, spec: SliceSpec, *, obs_unit: ObsUnit) -> AnnData:
    import pandas as pd

    gene_codes, genes = pd.factorize(points["gene"], sort=True)
    counts = csr_matrix((points["count"].to_numpy(np.float32), (codes, gene_codes)), shape=(len(ids), len(genes)))
    names, obs = pd.DataFrame(index=np.asarray(genes, dtype=object)), pd.DataFrame(index=ids.astype(object))
    return vendor_table(counts, names, obs, coords, technology="Stereo-seq", um_per_unit=UM_PER_DNB, spec=spec, obs_unit=obs_unit)


def _not_cells(found: str) -> BadSlice:
    return BadSlice("NOT_CELLS", f"found {found}; expected cells (a cellbin GEF, h5ad or GEM). Segment the cells, or set `bin_size` "
                    "(in DNBs of 0.5 um) to take square bins as if they were cells.")  # fmt: skip
