"""AnnData files, their matrices left on disk until rows of them are asked for."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpus.readers.input import reading
from corpus.slice import SliceSpec

if TYPE_CHECKING:
    from anndata import AnnData


def read_h5ad(spec: SliceSpec) -> AnnData:
    """Open an ``.h5ad`` file; raises as `open_h5ad`."""
    return open_h5ad(Path(spec.path))


def open_h5ad(path: Path) -> AnnData:
    """Open an ``.h5ad`` file; X, layers and raw stay on disk (`AnnData.to_memory` fetches them), the rest is read.

    Raises
    ------
    BadSlice
        ``INPUT_UNREADABLE`` if it is no such file or is damaged.
    """
    import anndata
    import h5py

    with (
        reading("AnnData", expected="a whole .h5ad file", remedy="Write it again with AnnData.write_h5ad."),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", r".*names are not unique", UserWarning)  # rows are known by number, equal genes are merged later
        file = h5py.File(path)
        if file.attrs.get("encoding-type") != "anndata":  # older than AnnData 0.8
            return anndata.read_h5ad(path)
        read = {key: anndata.io.read_elem(file[key]) for key in ("obs", "var", "obsm", "uns") if key in file}
        if "raw" in file:
            read["raw"] = {"X": _on_disk(file["raw/X"]), "var": anndata.io.read_elem(file["raw/var"])}
        layers = {name: _on_disk(found) for name, found in file["layers"].items()} if "layers" in file else {}
        return anndata.AnnData(X=_on_disk(file["X"]) if "X" in file else None, layers=layers, **read)


def _on_disk(found: Any) -> Any:
    """A dense matrix as an HDF5 dataset, a sparse one as AnnData's view of its group."""
    import anndata
    import h5py

    return found if isinstance(found, h5py.Dataset) else anndata.io.sparse_dataset(found)


def close(table: AnnData) -> None:
    """Close the file that matrices of a table are left in, if any; the table is of no use afterwards."""
    import h5py

    for matrix in [table.X, *table.layers.values(), *([table.raw.X] if table.raw is not None else [])]:
        held = getattr(matrix, "group", matrix)
        if isinstance(held, h5py.Group | h5py.Dataset) and held:
            held.file.close()
