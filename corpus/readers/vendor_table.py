"""The table that every vendor reader gives: counts of genes, controls beside them, places in micrometres, and what they are places of."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.sparse import csr_matrix

from corpus.readers.controls import GENE_TYPES, is_control_name
from corpus.slice import FloatArray, SliceSpec

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

ObsUnit = Literal["cell", "spot", "bead", "bin"]


def vendor_table(
    counts: csr_matrix,
    genes: pd.DataFrame,
    obs: pd.DataFrame,
    coords: FloatArray,
    *,
    technology: str,
    um_per_unit: float,
    spec: SliceSpec,
    obs_unit: ObsUnit = "cell",
) -> AnnData:
    """Make the table of one slice.

    Parameters
    ----------
    counts : (n_cells, n_features) CSR, molecules
    genes : (n_features,) rows, indexed by name
        Column ``feature_types`` as in 10x outputs, where the vendor has one; everything else goes into ``var``.
    obs : (n_cells,) rows, indexed by id
    coords : (n_cells, 2) float, the vendor's own unit
        NaN where the vendor gives a cell no place.
    um_per_unit : float
        Micrometres of that unit; ``spec.um_per_unit`` goes before it.

    Returns
    -------
    AnnData
        ``X`` genes only, ``obsm["spatial"]`` micrometres, ``obsm["controls"]`` CSR with names in ``uns["control_names"]``, and
        ``uns["provenance"]`` with technology, unit, um_per_unit and obs_unit.
    """
    import anndata

    um_per_unit = spec.um_per_unit or um_per_unit
    is_control = is_control_name(genes.index.to_numpy().astype(str))
    if "feature_types" in genes:
        is_control |= ~genes["feature_types"].isin(GENE_TYPES).to_numpy()
    provenance = {"technology": technology, "unit": "um", "um_per_unit": um_per_unit, "obs_unit": obs_unit}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*names are not unique", UserWarning)  # rows are known by number, equal genes are merged later
        table = anndata.AnnData(
            X=counts[:, ~is_control].astype(np.float32),
            obs=obs,
            var=genes[~is_control],
            obsm={"spatial": np.asarray(coords, np.float64) * um_per_unit, "controls": counts[:, is_control].astype(np.float32)},
            uns={"provenance": provenance, "control_names": genes.index[is_control].to_numpy().astype(str).astype(object)},
        )
    return table


def place(table: AnnData, spec: SliceSpec, *, technology: str, um_per_unit: float, obs_unit: ObsUnit = "cell") -> AnnData:
    """Bring the coordinates of a vendor's own AnnData to micrometres, and say so; the table itself is returned."""
    um_per_unit = spec.um_per_unit or um_per_unit
    if spec.spatial_key in table.obsm:
        table.obsm[spec.spatial_key] = np.asarray(table.obsm[spec.spatial_key], np.float64) * um_per_unit
    stated = table.uns.get("provenance")
    provenance = dict(stated) if isinstance(stated, Mapping) else {}
    table.uns["provenance"] = {**provenance, "technology": technology, "unit": "um", "um_per_unit": um_per_unit, "obs_unit": obs_unit}
    return table
