"""AnnData files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from corpus.slice import SliceSpec
from stofm.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData


def read_h5ad(spec: SliceSpec) -> AnnData:
    """Read an ``.h5ad`` file; `DataError` if it is not one or is damaged."""
    import anndata

    try:
        return anndata.read_h5ad(spec.path)
    except Exception as error:  # whatever h5py and anndata's registry of encodings raise, some of it from private modules
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"not readable as AnnData ({reason}); expected a whole .h5ad file. Write it again with AnnData.write_h5ad.") from error
