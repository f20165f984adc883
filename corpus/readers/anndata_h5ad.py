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
    """Open an ``.h5ad`` file; all its matrices stay on disk (`AnnData.to_memory` fetches them), the rest is read.

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
        parts: dict[str, Any] = {key: anndata.io.read_elem(file[key]) for key in ("obs", "var", "obsm", "varm", "uns") if key in file}
        parts |= {key: {name: _on_disk(one) for name, one in file[key].items()} for key in ("layers", "obsp", "varp") if key in file}
        if "X" in file:
            parts["X"] = _on_disk(file["X"])
        if "raw" in file:
            parts["raw"] = {
                "X": _on_disk(file["raw/X"]),
                **{key: anndata.io.read_elem(file["raw"][key]) for key in ("var", "varm") if key in file["raw"]},
            }
        return anndata.AnnData(**parts)


def _on_disk(found: Any) -> Any:
    """A dense matrix as an HDF5 dataset, a sparse one as AnnData's view of its group."""
    import anndata
    import h5py

    return found if isinstance(found, h5py.Dataset) else anndata.io.sparse_dataset(found)


def fetch(table: AnnData) -> AnnData:
    """Return a table with its matrices in memory; sparse float16 in X and layers, a type that scipy does not know, becomes float32."""
    import numpy as np
    from scipy.sparse import csc_matrix, csr_matrix

    def widened(matrix: Any) -> Any:
        if not hasattr(matrix, "group") or matrix.dtype != np.float16:
            return matrix
        values, where, starts = (matrix.group[name][:] for name in ("data", "indices", "indptr"))
        return {"csr": csr_matrix, "csc": csc_matrix}[matrix.format]((values.astype(np.float32), where, starts), shape=matrix.shape)

    table.X = widened(table.X)
    for name in table.layers:
        table.layers[name] = widened(table.layers[name])
    return table.to_memory()


def close(table: AnnData) -> None:
    """Close the file that matrices of a table are left in, if any; the table is of no use afterwards."""
    import h5py

    raw = [] if table.raw is None else [table.raw.X]
    for matrix in [table.X, *raw, *table.layers.values(), *table.obsp.values(), *table.varp.values()]:
        held = getattr(matrix, "group", matrix)
        if isinstance(held, h5py.Group | h5py.Dataset) and held:
            held.file.close()
