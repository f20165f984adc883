"""From an annotated table to a `Slice`: find the counts, the gene ids, the species, the unit and the labels, or say what is missing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from scipy.sparse import csr_matrix, issparse

from corpus.slice import FloatArray, Slice, SliceSpec, Species, StrArray, require_cells, to_micrometres
from stofm.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

ENSEMBL_ID = re.compile(r"^ENS(MUS)?G\d{11}(\.\d+)?$")
LABEL_COLUMNS = {"region": "region", "cell_type": "cell_type"}  # taken where present
ID_COLUMNS = ("ensembl_id", "gene_ids", "gene_id", "ensembl", "feature_id")


def slice_from_table(table: AnnData, spec: SliceSpec, *, slice_id: str) -> Slice:
    """Validate an AnnData table as a `Slice`.

    Raises
    ------
    DataError
        If counts, coordinates, a labelled column or a declared unit is missing or not what it should be.
    """
    require_cells(table.n_obs, table.n_vars)
    gene_names = table.var_names.to_numpy().astype(str)
    ensembl_ids = find_ensembl_ids(table, spec.gene_id_column)
    coords_um, um_per_unit = to_micrometres(
        find_coordinates(table, spec.spatial_key), declared_unit=declared_unit(table.uns), um_per_unit=spec.um_per_unit
    )
    provenance = provenance_of(table.uns)
    donor_column = next((name for name in ("donor", "patient", "animal") if name in table.obs), None)
    return Slice(
        slice_id=slice_id,
        counts=find_counts(table, spec.counts_layer),
        gene_names=gene_names,
        ensembl_ids=ensembl_ids,
        coords_um=coords_um,
        species=find_species(spec.species, provenance.get("species"), ensembl_ids, gene_names),
        labels=find_labels(table, spec.labels),
        source={
            "technology": str(provenance.get("technology", "unknown")),
            "tissue": str(provenance.get("tissue", "unknown")),
            "donor": spec.donor or (str(table.obs[donor_column].iloc[0]) if donor_column and table.n_obs else slice_id),
            "um_per_unit": um_per_unit,
        },
    )


def find_counts(table: AnnData, layer: str | None) -> csr_matrix:
    """Return the counts of `layer`, or of X, as CSR with sorted, unique columns and no stored zeros."""
    if layer is not None and layer not in table.layers:
        raise DataError(f"found layers {sorted(table.layers)}; expected {layer!r}. Set `counts_layer` to one of them.")
    matrix = table.layers[layer] if layer else table.X
    if matrix is None:
        raise DataError(f"found no X, layers {sorted(table.layers)}; expected raw counts. Set `counts_layer`.")
    if not (issparse(matrix) or isinstance(matrix, np.ndarray)) or not np.issubdtype(matrix.dtype, np.number):
        raise DataError(f"counts: found {type(matrix).__name__} of {getattr(matrix, 'dtype', 'no dtype')}; expected numbers, dense or sparse.")
    counts = csr_matrix(matrix)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


def find_coordinates(table: AnnData, key: str) -> FloatArray:
    """Return (n_cells, 2) float64 coordinates in the file's unit; a constant third column is dropped."""
    if key not in table.obsm:
        raise DataError(f"no coordinates: found obsm keys {sorted(table.obsm)}; expected {key!r}. Set `spatial_key`.")
    try:
        coords = np.asarray(table.obsm[key], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"obsm[{key!r}] holds no numbers; expected coordinates of shape ({table.n_obs}, 2).") from error
    if coords.ndim == 2 and coords.shape[1] == 3:
        if np.ptp(coords[:, 2]) > 0:
            raise DataError(f"obsm[{key!r}] has a varying z; expected one section per slice. Split the file by z and keep x and y.")
        coords = coords[:, :2]
    return coords


def declared_unit(uns: Any) -> str | None:
    """Return the coordinate unit that a file states in ``uns["spatial_unit"]`` or ``uns["provenance"]["unit"]``, if any."""
    unit = uns.get("spatial_unit") or provenance_of(uns).get("unit")
    return str(unit) if unit is not None else None


def provenance_of(uns: Any) -> Mapping[str, Any]:
    """Return ``uns["provenance"]`` where it is a mapping, else an empty one."""
    found = uns.get("provenance")
    return found if isinstance(found, Mapping) else {}


def find_ensembl_ids(table: AnnData, column: str | None) -> StrArray:
    """Return (n_genes,) Ensembl ids without version; "" where neither the id column nor the gene's name is one."""
    if column is not None and column not in table.var:
        raise DataError(f"found var columns {sorted(table.var)}; expected {column!r}. Set `gene_id_column` to one of them.")
    names = table.var_names.to_numpy().astype(str)
    column = column or next((name for name in ID_COLUMNS if name in table.var), None)
    stated = table.var[column].astype(str).to_numpy() if column else np.full(len(names), "")
    ids = [next((text.split(".")[0] for text in pair if ENSEMBL_ID.match(text)), "") for pair in zip(stated, names, strict=True)]
    return np.array(ids, dtype=str)


def find_species(setting: str, stated: str | None, ensembl_ids: StrArray, names: StrArray) -> Species:
    """Decide whose genes these are: by setting, by Ensembl ids, by what the file states, by the case of the symbols."""
    n_mouse = int(np.char.startswith(ensembl_ids, "ENSMUSG").sum())
    n_human = int(np.char.startswith(ensembl_ids, "ENSG").sum())
    if n_mouse and n_human:
        raise DataError(f"found {n_human} human and {n_mouse} mouse Ensembl ids; expected one species per slice. Split the genes by species.")
    by_ids = "mouse" if n_mouse else "human" if n_human else None
    if setting != "auto" and by_ids not in (None, setting):
        raise DataError(f"`species: {setting}` is set, found {by_ids} Ensembl ids; expected them to agree. Correct the setting.")
    is_title_case = np.array([name[:1].isupper() and name[1:] == name[1:].lower() and name[1:].isalnum() for name in names])
    guess = "mouse" if is_title_case.mean() > 0.5 else "human"
    species = setting if setting != "auto" else by_ids or (stated if stated in get_args(Species) else guess)
    return "mouse" if species == "mouse" else "human"


def find_labels(table: AnnData, required: dict[str, str]) -> dict[str, StrArray]:
    """Return label name -> (n_cells,) str, "" where missing; columns named in `required` must exist."""
    missing = sorted(set(required.values()) - set(table.obs))
    if missing:
        raise DataError(f"labelled column {missing[0]!r} is absent: found obs columns {sorted(table.obs)}; expected it. Correct the name.")
    columns = {name: column for name, column in LABEL_COLUMNS.items() if column in table.obs} | required
    return {name: table.obs[column].astype(object).where(table.obs[column].notna(), "").astype(str).to_numpy().astype(str)
            for name, column in sorted(columns.items())}  # fmt: skip
