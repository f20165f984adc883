"""The feature matrix of 10x Genomics pipelines, as HDF5 or as a folder of Matrix Market files; others write the latter too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scipy.sparse import csr_matrix

from corpus.readers.input import find_file
from corpus.slice import StrArray

if TYPE_CHECKING:
    import pandas as pd


def read_feature_matrix(path: Path) -> tuple[csr_matrix, pd.DataFrame, StrArray]:
    """Read an ``.h5`` or a folder of mtx, features and barcodes.

    scanpy reads both, but takes seconds to import in every process that reads a slice, and refuses the uncompressed folders
    that some pipelines write; the layout is three arrays and two lists of names.

    Returns
    -------
    (n_cells, n_features) CSR, molecules ; features, indexed by symbol, with gene_ids and feature_types ; (n_cells,) barcodes
    """
    return _read_folder(path) if path.is_dir() else _read_h5(path)


def _read_h5(path: Path) -> tuple[csr_matrix, pd.DataFrame, StrArray]:
    import h5py
    import pandas as pd

    with h5py.File(path) as file:
        matrix = file["matrix"]
        n_features, n_cells = matrix["shape"][:]
        counts = csr_matrix((matrix["data"][:], matrix["indices"][:], matrix["indptr"][:]), shape=(n_cells, n_features))  # stored by cell
        names, ids, types = (matrix["features"][key].asstr()[:] for key in ("name", "id", "feature_type"))
        return counts, pd.DataFrame({"gene_ids": ids, "feature_types": types}, index=names), matrix["barcodes"].asstr()[:].astype(str)


def _read_folder(folder: Path) -> tuple[csr_matrix, pd.DataFrame, StrArray]:
    import pandas as pd
    from scipy.io import mmread

    def names_of(*patterns: str) -> pd.DataFrame:
        return pd.read_csv(find_file(folder, *patterns), sep="\t", header=None, dtype=str, keep_default_na=False)  # "NA" may be a name

    counts = csr_matrix(mmread(find_file(folder, "*matrix.mtx", "*matrix.mtx.gz")).T)
    features = names_of("*features.tsv", "*features.tsv.gz", "*genes.tsv", "*genes.tsv.gz")
    genes = pd.DataFrame({"gene_ids": features[0].to_numpy()}, index=features[1].to_numpy())
    genes["feature_types"] = features[2].to_numpy() if 2 in features else "Gene Expression"
    return counts, genes, names_of("*barcodes.tsv", "*barcodes.tsv.gz")[0].to_numpy().astype(str)
