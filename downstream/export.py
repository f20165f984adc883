"""Embedded and predicted slices as other programs read them: Xenium Explorer, GIS and QuPath (GeoJSON), R (Seurat)."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from corpus.readers.table import find_coordinates, find_counts
from corpus.slice import SliceSpec
from downstream.embedding import require_embedded
from downstream.tables import um_per_unit_of, written_spec
from stofm.durable import replacing
from stofm.errors import DataError
from stofm.fields import UNS_STOFM

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

Format = Literal["xenium-explorer", "geojson", "seurat"]
PREDICTIONS = ("stofm_region", "stofm_cell_type")


def export_xenium_explorer(table: AnnData, spec: SliceSpec, folder: Path, *, group: str | None) -> None:
    """Write ``cell_groups.csv`` with the columns that Xenium Explorer imports, ``cell_id,group``; cells without a group are left out."""
    groups = groups_of(table, group)
    groups = groups[groups != ""].rename("group").rename_axis("cell_id")
    groups.to_csv(folder / "cell_groups.csv")


def export_geojson(table: AnnData, spec: SliceSpec, folder: Path, *, group: str | None) -> None:
    """Write ``cells.geojson``: a feature per cell, in micrometres, with its id, group and all columns that SToFM wrote.

    Cells are the polygons that the table of a SpatialData store annotates, where there are any, else points; cells without a place are left out.
    """
    import geopandas

    um_per_unit = um_per_unit_of(table.uns[UNS_STOFM])
    columns = table.obs[[name for name in table.obs if str(name).startswith("stofm_")]].assign(cell_id=table.obs_names.astype(str))
    if group is not None or any(name in table.obs for name in PREDICTIONS):
        columns["group"] = groups_of(table, group).to_numpy()
    places = find_coordinates(table, spec.spatial_key)
    geometry = _outlines(spec, table)
    if geometry is None:
        geometry = geopandas.GeoSeries.from_xy(*np.where(np.isfinite(places), places, 0).T, index=table.obs_names)
    frame = geopandas.GeoDataFrame(columns, geometry=geometry.scale(um_per_unit, um_per_unit, origin=(0, 0)).to_numpy())
    frame = frame[np.isfinite(places).all(axis=1)]
    (folder / "cells.geojson").write_text(frame.to_json(drop_id=True), encoding="utf-8")


def export_seurat(table: AnnData, spec: SliceSpec, folder: Path, *, group: str | None) -> None:
    """Write what Seurat's `ReadMtx`, and any R, reads.

    ``matrix.mtx.gz`` (genes by cells, molecules), ``features.tsv.gz`` and ``barcodes.tsv.gz`` as 10x lay them out, and by cell ``metadata.csv.gz``,
    ``coordinates.csv.gz`` (micrometres) and ``stofm.csv.gz`` (columns STOFM_1 to STOFM_256; empty for cells that were not embedded).
    """
    import pandas as pd
    from scipy.io import mmwrite

    cells = table.obs_names.astype(str)
    counts, var, _ = find_counts(table, spec.counts_layer, np.ones(table.n_obs, bool))
    with gzip.open(folder / "matrix.mtx.gz", "wb", compresslevel=4) as file:
        mmwrite(file, counts.T.tocoo().astype(np.int64), field="integer")
    genes = var.index.astype(str)
    pd.DataFrame({"id": genes, "name": genes, "type": "Gene Expression"}).to_csv(folder / "features.tsv.gz", sep="\t", header=False, index=False)
    pd.Series(cells).to_csv(folder / "barcodes.tsv.gz", header=False, index=False)
    metadata = table.obs if group is None else table.obs.assign(group=groups_of(table, group))
    places = find_coordinates(table, spec.spatial_key) * um_per_unit_of(table.uns[UNS_STOFM])
    embedding = require_embedded(table, str(spec.path))
    tables = {
        "metadata": metadata.set_axis(cells),
        "coordinates": pd.DataFrame(places, index=cells, columns=["x_um", "y_um"]),
        "stofm": pd.DataFrame(embedding, index=cells, columns=[f"STOFM_{number + 1}" for number in range(embedding.shape[1])]),
    }
    for name, one in tables.items():
        one.to_csv(folder / f"{name}.csv.gz", index_label="cell_id")


FORMATS: dict[Format, Any] = {"xenium-explorer": export_xenium_explorer, "geojson": export_geojson, "seurat": export_seurat}


def export(table: AnnData, spec: SliceSpec, folder: Path, *, to: Format, group: str | None) -> Path:
    """Write a slice in one of `FORMATS` into a new folder, whole or not at all; returns the folder.

    Raises
    ------
    DataError
        If the slice is not embedded, or has no such column of groups.
    """
    require_embedded(table, folder.name)
    spec = written_spec(Path(spec.path), table.uns[UNS_STOFM])
    with replacing(folder) as aside:
        aside.mkdir()
        FORMATS[to](table, spec, aside, group=group)
    return folder


def groups_of(table: AnnData, column: str | None) -> pd.Series:
    """Return the group of every cell, (n_cells,) str, "" for none: of `column`, or of the first prediction in the table."""
    found = column or next((name for name in PREDICTIONS if name in table.obs), None)
    if found is None or found not in table.obs:
        raise DataError(f"groups of cells: found obs columns {sorted(map(str, table.obs))}; expected {found or ' or '.join(PREDICTIONS)!r}. "
                        "Predict them first, or name a column with --group.")  # fmt: skip
    groups = table.obs[found]
    return groups.astype(object).where(groups.notna(), "").astype(str)


def _outlines(spec: SliceSpec, table: AnnData) -> Any:
    """The shapes that every row of a SpatialData table annotates, in "global", as a GeoSeries in the order of the rows; None if some has none."""
    if not (Path(spec.path).is_dir() and "spatialdata_attrs" in table.uns):
        return None
    import pandas as pd
    import spatialdata
    from spatialdata.models import get_table_keys

    data = spatialdata.read_zarr(spec.path)
    regions, _, instance_key = get_table_keys(table)
    shapes = [spatialdata.transform(data.shapes[region], to_coordinate_system="global").geometry
              for region in ([regions] if isinstance(regions, str) else regions) if region in data.shapes]  # fmt: skip
    if not shapes:
        return None
    outlines = pd.concat(shapes)
    is_known = table.obs[instance_key].isin(outlines.index).all() and outlines.index.is_unique
    return outlines.reindex(table.obs[instance_key].to_numpy()) if is_known else None
