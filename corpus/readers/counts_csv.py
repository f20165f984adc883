"""Tables of counts as text, which vendors write dense: read by row blocks, so that only what is not zero stays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix, vstack

from corpus.slice import StrArray

if TYPE_CHECKING:
    import pandas as pd

ENTRIES_PER_BLOCK = 2**23


def read_counts_csv(path: Path, *, keys: Sequence[str] = (), sep: str = ",") -> tuple[pd.DataFrame, csr_matrix, StrArray]:
    """Read a table of counts with a header, plain or gzipped.

    Parameters
    ----------
    keys : column names
        Columns (where present) that identify a row; default: the first column. They are read as text, for cell ids can be
        longer than a float is exact.

    Returns
    -------
    keys (n_rows,), indexed 0, 1, ... ; (n_rows, n_columns) CSR float32 ; (n_columns,) names of the other columns
    """
    import pandas as pd

    header = pd.read_csv(path, sep=sep, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0].tolist()
    key_columns = [column for column, name in enumerate(header) if name in keys] or [0]
    dtypes = {column: str if column in key_columns else np.float32 for column in range(len(header))}
    blocks, key_blocks = [], []
    n_rows = max(1, ENTRIES_PER_BLOCK // len(header))
    blocks_of_file = pd.read_csv(  # "NA" is a name, and an empty entry no count
        path, sep=sep, header=None, skiprows=1, names=range(len(header)), index_col=False, dtype=dtypes, na_filter=False, chunksize=n_rows
    )
    for block in blocks_of_file:
        key_blocks.append(block[key_columns])
        blocks.append(csr_matrix(block.drop(columns=key_columns).to_numpy(np.float32)))
    names = np.array([name for column, name in enumerate(header) if column not in key_columns], dtype=str)
    found = pd.concat(key_blocks, ignore_index=True).set_axis([header[column] for column in key_columns], axis=1)
    return found, vstack(blocks, format="csr"), names
