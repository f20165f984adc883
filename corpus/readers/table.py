"""From an annotated table to a `Slice`: find the counts, the gene ids, the species, the unit and the labels, or say what is missing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from scipy.sparse import csr_matrix, hstack

from corpus.qc import obs_unit_of
from corpus.readers.controls import is_control_name
from corpus.readers.count_blocks import StoredCounts, n_detected, read_counts, store_counts
from corpus.readers.sections import rows_of_section
from corpus.slice import BoolArray, FloatArray, Slice, SliceSpec, Species, StrArray, require_cells, require_coordinates, to_micrometres
from stofm.errors import BadSlice

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

ENSEMBL_ID = re.compile(r"^ENS(MUS)?G\d{11}(\.\d+)?$")
LABEL_COLUMNS = {"region": "region", "cell_type": "cell_type"}  # taken where present
COUNT_LAYERS = ("counts", "raw_counts")  # tried where X is no counts
LARGEST_SHARE_UNPLACED = 0.01
NO_PLACE, NO_COUNTS = "no place", "no counts"  # why a cell was dropped
ID_COLUMNS = ("ensembl_id", "gene_ids", "gene_id", "ensembl", "feature_id")


def slice_from_table(table: AnnData, spec: SliceSpec, *, slice_id: str, converted: float | None = None, is_stored: bool = False) -> Slice:
    """Validate an AnnData table as a `Slice`; cells without a place or without a count are dropped, and counted.

    Parameters
    ----------
    converted : micrometres per unit of the source
        Given by readers whose coordinates are micrometres already.
    is_stored : bool
        Leave the counts where they are (`StoredCounts`), and labels and controls out: for slices that need not fit into memory.

    Raises
    ------
    BadSlice
        If counts, coordinates, a labelled column or a declared unit is missing or not what it should be; `BadSlice.code` says which.
    """
    require_cells(table.n_obs, table.n_vars)
    _require_no_bins(table.uns, spec)
    places = find_places(table, spec.spatial_key)
    is_here = rows_of_section(table, places, spec)
    rows, coords = np.flatnonzero(is_here), places[is_here, :2]
    is_placed = _few_unplaced(coords)
    um_per_unit = spec.um_per_unit if converted is None else 1.0
    coords_um, um_per_unit = to_micrometres(coords, declared_unit=declared_unit(table.uns), um_per_unit=um_per_unit)
    is_here[rows[~is_placed]] = False
    counts, var, counts_from = _find_counts(table, spec.counts_layer, is_here, store_counts if is_stored else read_counts)

    gene_names = var.index.to_numpy().astype(str)
    ensembl_ids = find_ensembl_ids(var, spec.gene_id_column)
    is_control = _controls(gene_names, ensembl_ids)
    require_labels(table, spec.labels)
    provenance = provenance_of(table.uns)
    technology = str(provenance.get("technology", "unknown"))
    donor_column = next((name for name in ("donor", "patient", "animal") if name in table.obs), None)
    st_slice = Slice(
        slice_id=slice_id,
        counts=_of_genes(counts, ~is_control),
        gene_names=gene_names[~is_control],
        ensembl_ids=ensembl_ids[~is_control],
        coords_um=coords_um[is_placed],
        species=find_species(spec.species, provenance.get("species"), ensembl_ids, gene_names),
        labels={} if is_stored else {name: values[is_here] for name, values in find_labels(table, spec.labels).items()},
        source={
            "technology": technology,
            "tissue": str(provenance.get("tissue", "unknown")),
            "donor": spec.donor or (str(table.obs[donor_column].to_numpy()[is_here][0]) if donor_column and is_here.any() else slice_id),
            "study": spec.study or str(provenance.get("study", "")),
            "license": str(provenance.get("license") or provenance.get("licence") or ""),
            "um_per_unit": converted or um_per_unit,
            "obs_unit": str(provenance.get("obs_unit", obs_unit_of(technology))),
            "counts_from": counts_from,
            **({"section": spec.section} if spec.section is not None else {}),
        },
        source_rows=np.flatnonzero(is_here),
        dropped_rows={} if is_placed.all() else {NO_PLACE: rows[~is_placed]},
        **({} if is_stored else _controls_of(table, is_here, counts[:, is_control], gene_names[is_control])),
    )
    return st_slice.without(n_detected(st_slice.counts) == 0, NO_COUNTS)


def _of_genes(counts: csr_matrix | StoredCounts, is_gene: BoolArray) -> csr_matrix | StoredCounts:
    if isinstance(counts, StoredCounts):
        return counts.of_genes(is_gene)
    return counts if is_gene.all() else counts[:, is_gene]


def _controls_of(table: AnnData, is_here: BoolArray, among_genes: csr_matrix, names: StrArray) -> dict[str, Any]:
    """Counts and names of the controls found among the genes and beside them, as `Slice` takes them."""
    beside, beside_names = _controls_beside(table, is_here)
    return {"controls": hstack([among_genes, beside], format="csr", dtype=np.float32), "control_names": np.concatenate([names, beside_names])}


def find_counts(table: AnnData, layer: str | None, is_read: BoolArray) -> tuple[csr_matrix, pd.DataFrame, str]:
    """Read the counts of `layer`, or of the first of X, the usual layers and raw that holds counts.

    Returns
    -------
    (is_read.sum(), n_genes) CSR float32 ; the table of its genes ; where they were found
    """
    return _find_counts(table, layer, is_read, read_counts)


def _find_counts(table: AnnData, layer: str | None, is_read: BoolArray, read: Callable[[Any, BoolArray], Any]) -> tuple[Any, pd.DataFrame, str]:
    """As `find_counts`; `read` is `read_counts` or `store_counts`."""
    if layer is not None and layer not in table.layers:
        raise BadSlice("NOT_COUNTS", f"found layers {sorted(table.layers)}; expected {layer!r}. Set `counts_layer` to one of them.")
    if layer is not None:
        return read(table.layers[layer], is_read), table.var, f"layers[{layer!r}]"
    found = [] if table.X is None else [(table.X, table.var, "X")]
    found += [(table.layers[name], table.var, f"layers[{name!r}]") for name in COUNT_LAYERS if name in table.layers]
    found += [] if table.raw is None else [(table.raw.X, table.raw.var, "raw")]
    if not found:
        raise BadSlice("NOT_COUNTS", f"found no X, layers {sorted(table.layers)}; expected raw counts. Set `counts_layer`.")
    refusals: list[BadSlice] = []
    for matrix, var, name in found:
        try:
            return read(matrix, is_read), var, name
        except BadSlice as refusal:
            if refusal.code != "NOT_COUNTS":
                raise
            refusals.append(refusal)
    raise refusals[0]


def find_places(table: AnnData, key: str) -> FloatArray:
    """Return (n_cells, 2 or 3) float64 coordinates in the file's unit."""
    if key not in table.obsm:
        raise BadSlice("NO_COORDS", f"no coordinates: found obsm keys {sorted(table.obsm)}; expected {key!r}. Set `spatial_key`.")
    try:
        coords = np.asarray(table.obsm[key], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadSlice("NO_COORDS", f"obsm[{key!r}] holds no numbers; expected coordinates of shape ({table.n_obs}, 2).") from error
    if coords.ndim != 2 or coords.shape[1] not in (2, 3):
        raise BadSlice("NO_COORDS", f"coordinates have shape {coords.shape}; expected ({table.n_obs}, 2). Keep x and y of one section in the file.")
    return coords


def find_coordinates(table: AnnData, key: str) -> FloatArray:
    """Return (n_cells, 2) float64 coordinates in the file's unit, x and y alone."""
    return find_places(table, key)[:, :2]


def _few_unplaced(coords: FloatArray) -> BoolArray:
    """Tell which (n, 2) places are numbers; `BadSlice` if more than one in a hundred is not."""
    is_placed = np.asarray(np.isfinite(coords).all(axis=1))
    if (~is_placed).mean() > LARGEST_SHARE_UNPLACED:
        require_coordinates(coords, len(coords))
    return is_placed


def _require_no_bins(uns: Any, spec: SliceSpec) -> None:
    """Refuse a table that says its rows are square bins, unless `spec.bin_size` takes them."""
    if str(uns.get("bin_type", "")) == "bins" and spec.bin_size is None:
        raise BadSlice("NOT_CELLS", f"found square bins (bin_size {uns.get('bin_size')}); expected cells. Segment the cells, or set `bin_size` to "
                       "take bins as if they were cells.")  # fmt: skip


def _controls(names: StrArray, ensembl_ids: StrArray) -> BoolArray:
    """Tell which features are controls; `BadSlice` if one has the id of a gene, for then the name or the id is wrong."""
    is_control = is_control_name(names)
    clashes = np.flatnonzero(is_control & (ensembl_ids != ""))
    if len(clashes):
        name, ensembl_id = str(names[clashes[0]]), ensembl_ids[clashes[0]]
        raise BadSlice("CONTROL_IS_GENE", f"feature {name!r} is named like a control and has the id {ensembl_id}; "
                       "expected one or the other. Correct its name or id.")  # fmt: skip
    return is_control


def _controls_beside(table: AnnData, is_read: BoolArray) -> tuple[csr_matrix, StrArray]:
    """Read the controls that a reader has put beside the counts, with their names."""
    if "controls" not in table.obsm or "control_names" not in table.uns:
        return csr_matrix((int(is_read.sum()), 0), dtype=np.float32), np.zeros(0, np.str_)
    names = np.asarray(table.uns["control_names"]).astype(str)
    return csr_matrix(table.obsm["controls"])[is_read], names.reshape(-1)


def declared_unit(uns: Any) -> str | None:
    """Return the coordinate unit that a file states in ``uns["spatial_unit"]`` or ``uns["provenance"]["unit"]``, if any."""
    unit = uns.get("spatial_unit") or provenance_of(uns).get("unit")
    return str(unit) if unit is not None else None


def provenance_of(uns: Any) -> Mapping[str, Any]:
    """Return ``uns["provenance"]`` where it is a mapping, else an empty one."""
    found = uns.get("provenance")
    return found if isinstance(found, Mapping) else {}


def find_ensembl_ids(var: pd.DataFrame, column: str | None) -> StrArray:
    """Return (n_genes,) Ensembl ids without version; "" where neither the id column nor the gene's name is one."""
    if column is not None and column not in var:
        raise BadSlice("SETTING", f"found var columns {sorted(map(str, var))}; expected {column!r}. Set `gene_id_column` to one of them.")
    names = var.index.astype(str).tolist()
    column = column or next((name for name in ID_COLUMNS if name in var), None)
    stated = var[column].astype(str).tolist() if column else [""] * len(names)
    ids = [next((text.split(".")[0] for text in pair if ENSEMBL_ID.match(text)), "") for pair in zip(stated, names, strict=True)]
    return np.array(ids, dtype=str)


def find_species(setting: str, stated: str | None, ensembl_ids: StrArray, names: StrArray) -> Species:
    """Decide whose genes these are: by setting, by Ensembl ids, by what the file states, by the case of the symbols."""
    n_mouse = int(np.char.startswith(ensembl_ids, "ENSMUSG").sum())
    n_human = int(np.char.startswith(ensembl_ids, "ENSG").sum())
    if n_mouse and n_human:
        raise BadSlice(
            "MIXED_SPECIES", f"found {n_human} human and {n_mouse} mouse Ensembl ids; expected one species per slice. Split the genes by species."
        )
    by_ids = "mouse" if n_mouse else "human" if n_human else None
    if setting != "auto" and by_ids not in (None, setting):
        raise BadSlice("SETTING", f"`species: {setting}` is set, found {by_ids} Ensembl ids; expected them to agree. Correct the setting.")
    is_title_case = np.array([name[:1].isupper() and name[1:] == name[1:].lower() and name[1:].isalnum() for name in names])
    guess = "mouse" if is_title_case.mean() > 0.5 else "human"
    species = setting if setting != "auto" else by_ids or (stated if stated in get_args(Species) else guess)
    return "mouse" if species == "mouse" else "human"


def require_labels(table: AnnData, required: dict[str, str]) -> None:
    """Raise `BadSlice` if the column of a label is not there."""
    missing = sorted(set(required.values()) - set(table.obs))
    if missing:
        raise BadSlice("SETTING", f"labelled column {missing[0]!r} is absent: found obs columns {sorted(table.obs)}; expected it. Correct the name.")


def find_labels(table: AnnData, required: dict[str, str]) -> dict[str, StrArray]:
    """Return label name -> (n_cells,) str, "" where missing; columns named in `required` must exist."""
    require_labels(table, required)
    columns = {name: column for name, column in LABEL_COLUMNS.items() if column in table.obs} | required
    return {name: table.obs[column].astype(object).where(table.obs[column].notna(), "").astype(str).to_numpy().astype(str)
            for name, column in sorted(columns.items())}  # fmt: skip
