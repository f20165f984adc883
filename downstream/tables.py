"""Where embedded tables lie: read with their matrices left on disk, written as the input with something more in it, nothing else touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpus.readers import UNITS_OF_THE_FILE, technology_of
from corpus.slice import SliceSpec
from stofm.durable import replacing
from stofm.fields import STOFM_STATUS, UNS_STOFM, X_STOFM, X_STOFM_CELL

if TYPE_CHECKING:
    from anndata import AnnData


def output_suffix(spec: SliceSpec) -> str:
    """``.zarr`` for SpatialData, which stays what it is, else ``.h5ad``."""
    return ".zarr" if technology_of(spec) == "spatialdata" else ".h5ad"


def is_copied(spec: SliceSpec) -> bool:
    """Tell whether the output is a copy of the input with more in it: of an ``.h5ad`` or a SpatialData store."""
    technology = technology_of(spec)
    return technology == "spatialdata" or (technology == "anndata" and _is_current(Path(spec.path)))


def forget_names(table: AnnData, spec: SliceSpec) -> None:
    """Let go of the names of a table's cells, some 100 bytes each, where the output has them from the input."""
    import pandas as pd

    if is_copied(spec):
        table.obs.index = pd.RangeIndex(table.n_obs)


def write_embedded(table: AnnData, spec: SliceSpec, path: Path) -> Path:
    """Write an embedded table, whole or not at all; returns the path.

    Of an ``.h5ad`` or a SpatialData store a copy is made and the embedding added to it: matrices, images and shapes are the input's own bytes.
    What other readers gave becomes an ``.h5ad``.
    """
    with replacing(path) as aside:
        if not is_copied(spec):
            table.write_h5ad(aside, compression="gzip")
        elif Path(spec.path).is_dir():
            shutil.copytree(spec.path, aside)
            _add_to_store(aside, spec, table)
        else:
            import h5py

            shutil.copyfile(spec.path, aside)
            with h5py.File(aside, "r+") as file:
                _add(file, table)
    return path


def _add_to_store(store: Path, spec: SliceSpec, table: AnnData) -> None:
    """Add an embedding to a table of a SpatialData store; metadata that the root gathers of all below it are gathered again."""
    import warnings

    import anndata
    import zarr

    root = zarr.open_group(store, mode="r+", use_consolidated=False)
    tables = dict(root["tables"].groups())  # type: ignore[union-attr]
    with anndata.settings.override(auto_shard_zarr_v3=False):  # None warns
        _add(tables[spec.table or next(iter(tables))], table)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)  # of files in the store that are no zarr, as parquet
        zarr.consolidate_metadata(root.store)


def _is_current(path: Path) -> bool:
    import h5py

    with h5py.File(path) as file:
        return file.attrs.get("encoding-type") == "anndata"


def _add(group: Any, table: AnnData) -> None:
    """Add what `embed` added to a table to its copy in HDF5 or zarr."""
    from anndata.io import write_elem

    for key in ("obsm", "uns"):
        if key not in group:
            write_elem(group, key, {})
    for key in (X_STOFM, X_STOFM_CELL):
        if key in table.obsm:
            write_elem(group["obsm"], key, table.obsm[key])
    write_elem(group["uns"], UNS_STOFM, table.uns[UNS_STOFM])
    write_elem(group["obs"], STOFM_STATUS, table.obs[STOFM_STATUS].to_numpy(object))
    columns = [str(name) for name in group["obs"].attrs["column-order"] if name != STOFM_STATUS]
    group["obs"].attrs["column-order"] = [*columns, STOFM_STATUS]


def read_receipt(path: Path) -> dict[str, Any] | None:
    """Return ``uns["stofm"]`` of a file that may hold an embedding, without reading more of it; None if it holds none."""
    from anndata.io import read_elem

    with _opened(path) as group:
        found = group["uns"] if group is not None and "uns" in group else {}
        return dict(read_elem(found[UNS_STOFM])) if UNS_STOFM in found else None


def written_spec(path: Path, receipt: Mapping[str, Any]) -> SliceSpec:
    """Say how to read an embedded file as its input was read; what an instrument wrote is in micrometres since then."""
    spec = SliceSpec(**{**json.loads(str(receipt["slice"])), "path": str(path), "slice_id": None})
    if receipt.get("technology", "anndata") in UNITS_OF_THE_FILE:
        return spec
    return spec.model_copy(update={"technology": "auto", "um_per_unit": None})


def um_per_unit_of(receipt: Mapping[str, Any]) -> float:
    """Return the micrometres of one unit of the places in an embedded file."""
    return float(receipt["um_per_unit"]) if receipt.get("technology", "anndata") in UNITS_OF_THE_FILE else 1.0


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The group of the table in an ``.h5ad`` or in a SpatialData store with an embedded table; None if it is neither."""
    if path.is_dir():
        import zarr

        tables = dict(zarr.open_group(path, mode="r")["tables"].groups())  # type: ignore[union-attr]
        yield next((one for one in tables.values() if f"uns/{UNS_STOFM}" in one), None)
        return
    import h5py

    if not h5py.is_hdf5(path):
        yield None
        return
    with h5py.File(path) as file:
        yield file
