"""SpatialData stores: one table, placed by its own coordinates or by the shapes or points that it annotates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from corpus.readers.input import reading
from corpus.slice import SliceSpec
from stofm.errors import BadSlice

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def read_spatialdata_zarr(spec: SliceSpec) -> AnnData:
    """Read the table of a SpatialData store, coordinates in ``obsm[spec.spatial_key]``.

    A table without that key takes the centroids of the element that it annotates, in the coordinate system "global".

    Raises
    ------
    BadSlice
        If the store is unreadable, has no table, or several and `spec.table` names none of them; or if a cell of the
        table has no shape or point.
    """
    import spatialdata

    if not any((Path(spec.path) / name).exists() for name in ("zarr.json", ".zgroup")):
        raise BadSlice("INPUT_UNREADABLE", "found no zarr store; expected a SpatialData .zarr folder. Write it with SpatialData.write.")
    with reading("SpatialData", expected="a whole .zarr store", remedy="Write it again with SpatialData.write."):
        data = spatialdata.read_zarr(spec.path)
    return table_of(data, spec)


def table_of(data: SpatialData, spec: SliceSpec) -> AnnData:
    """Return the table of a SpatialData object, placed; the table itself, not a copy. Raises as `read_spatialdata_zarr`."""
    names = sorted(data.tables)
    name = spec.table or (names[0] if len(names) == 1 else None)
    if name not in names:
        raise BadSlice("NO_TABLE", f"found tables {names}; expected {spec.table!r}. Name one of them with `table`." if spec.table or names
                       else "found no table; expected one with counts. Aggregate the transcripts first.")  # fmt: skip
    table: AnnData = data.tables[name]
    if spec.spatial_key not in table.obsm:
        table.obsm[spec.spatial_key] = _centroids(data, table)
    return table


def _centroids(data: SpatialData, table: AnnData):  # type: ignore[no-untyped-def]  # (n_cells, 2) float64, the units of "global"
    """Place every row of a table at the centroid of the element instance that it annotates."""
    import numpy as np
    from spatialdata import get_centroids
    from spatialdata.models import get_table_keys

    if "spatialdata_attrs" not in table.uns:
        raise BadSlice("NO_COORDS", "the table has no coordinates and annotates no element; expected one of them. Name its coordinates with "
                       "`spatial_key`.")  # fmt: skip
    regions, region_key, instance_key = get_table_keys(table)
    coords = np.full((table.n_obs, 2), np.nan)
    for region in [regions] if isinstance(regions, str) else regions:
        if region not in data:
            raise BadSlice("NO_COORDS", f"the table annotates {region!r}, which the store does not hold; expected it. Write the store again with "
                           "its elements.")  # fmt: skip
        is_here = (table.obs[region_key] == region).to_numpy()
        centroids = get_centroids(data[region], coordinate_system="global").compute()[["x", "y"]]
        coords[is_here] = centroids.reindex(table.obs.loc[is_here, instance_key].to_numpy()).to_numpy()
    return coords
