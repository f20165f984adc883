"""The truth of a corpus: every slice once, as a zipped zarr v3 AnnData store that is never changed; counts can be read by blocks of rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from corpus.gene_ids import MARKERS, GeneAudit, GeneTables, map_to_human
from corpus.gene_vocab import merge_genes
from corpus.slice import FloatArray, IntArray, Slice, StrArray
from corpus.zarr_zip import CHUNK, Group, Store, naming_damage, new_group, open_store, write_parts
from stofm.errors import DataError, FormatError

TRUTH_FORMAT = "stofm-truth/1"
SOURCE_ROW, N_COUNTS, N_GENES = "source_row", "n_counts", "n_genes"  # columns of obs; all others are labels
CELLS_AT_A_TIME = 65_536


@dataclass(frozen=True, eq=False)
class SliceTruth:
    """A slice as the corpus keeps it: counts of human genes, in the order of its source.

    Attributes
    ----------
    counts : (n_cells, n_genes) CSR, molecules
    human_ids : (n_genes,) str
        Ensembl ids, unique, sorted.
    symbols : (n_genes,) str
        As the source spells them (the first of those merged).
    coords_um : (n_cells, 2) float64, micrometres
    labels : {name: (n_cells,) str}
        "" where missing.
    source_rows : (n_cells,) int64
        Row of each cell in the source.
    dropped : {reason: cells}
        Cells of the source that are not here.
    """

    slice_id: str
    counts: csr_matrix
    human_ids: StrArray
    symbols: StrArray
    coords_um: FloatArray
    labels: Mapping[str, StrArray]
    source: Mapping[str, str | float]
    source_rows: IntArray
    dropped: Mapping[str, int] = field(default_factory=dict)


def truth_of(st_slice: Slice, tables: GeneTables, markers: Collection[str] = MARKERS) -> tuple[SliceTruth, GeneAudit]:
    """Bring a slice to human genes; raises as `map_to_human`."""
    ids, audit = map_to_human(st_slice, tables, markers)
    counts, human_ids = merge_genes(st_slice.counts, ids)
    first_source = {gene: name for gene, name in zip(ids[::-1].tolist(), st_slice.gene_names[::-1].tolist(), strict=True) if gene}
    symbols = np.array([first_source[gene] for gene in human_ids.tolist()])
    source = {**st_slice.source, "species": st_slice.species}
    return SliceTruth(
        st_slice.slice_id, counts, human_ids, symbols, st_slice.coords_um, st_slice.labels, source, st_slice.source_rows, st_slice.dropped
    ), audit


def write_truth(path: Path, truth: SliceTruth) -> None:
    """Write a slice to a zip of a zarr v3 AnnData store, whole or not at all.

    Counts become uint16 (uint32 if one needs it) and column numbers the narrowest unsigned integers, block after block:
    nothing as large as `counts` is copied.
    """
    import pandas as pd
    from anndata import settings
    from anndata.io import write_elem

    counts = _canonical(truth.counts)
    obs = {SOURCE_ROW: truth.source_rows.astype(np.uint32), N_COUNTS: _row_sums(counts), N_GENES: np.diff(counts.indptr).astype(np.uint32)}
    labels = {name: pd.Categorical(values) for name, values in truth.labels.items()}
    if reserved := sorted(obs.keys() & labels.keys()):
        raise DataError(f"slice {truth.slice_id!r}: found a label named {reserved[0]!r}; expected another name. Rename it in `labels`.")
    rows = pd.Index([str(row) for row in range(counts.shape[0])])
    with new_group(path) as group, settings.override(zarr_write_format=3, auto_shard_zarr_v3=False):
        group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        _write_counts(group.create_group("X"), counts)
        write_elem(group, "obs", pd.DataFrame({**obs, **labels}, index=rows))
        write_elem(group, "var", pd.DataFrame({"symbol": truth.symbols.astype(object)}, index=truth.human_ids.astype(object)))
        write_elem(group, "obsm", {})
        write_parts(group["obsm"], "spatial", truth.coords_um.dtype, truth.coords_um.shape, [truth.coords_um])
        group["obsm/spatial"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        facts = {"slice_id": truth.slice_id, "source": dict(truth.source), "dropped": dict(truth.dropped)}
        write_elem(group, "uns", {"format": TRUTH_FORMAT, **facts})


def read_truth(path: Path) -> SliceTruth:
    """Read what `write_truth` wrote; `FormatError` if it is missing, damaged or of another format."""
    with open_store(path) as store, naming_damage(path):
        _require_truth(store)
        return SliceTruth(
            slice_id=str(store.read("uns/slice_id")),
            counts=_read_counts(store, 0, store.attributes("X")["shape"][0]),
            human_ids=store.read("var/_index").astype(str),
            symbols=store.read("var/symbol").astype(str),
            coords_um=store.read("obsm/spatial"),
            labels=_read_labels(store),
            source={name: store.read(f"uns/source/{name}").item() for name in store.children("uns/source")},
            source_rows=store.read(f"obs/{SOURCE_ROW}").astype(np.int64),
            dropped={reason: int(store.read(f"uns/dropped/{reason}")) for reason in store.children("uns/dropped")},
        )


def read_genes(path: Path) -> tuple[StrArray, StrArray]:
    """Return (n_genes,) human Ensembl ids and (n_genes,) symbols of a slice, without its counts."""
    with open_store(path) as store, naming_damage(path):
        _require_truth(store)
        return store.read("var/_index").astype(str), store.read("var/symbol").astype(str)


def read_labelled_places(path: Path) -> tuple[FloatArray, dict[str, StrArray]]:
    """Return (n_cells, 2) float64 micrometres and {label: (n_cells,) str, "" where missing} of a slice, without its counts."""
    with open_store(path) as store, naming_damage(path):
        _require_truth(store)
        return store.read("obsm/spatial"), _read_labels(store)


def iter_counts(path: Path, *, n_cells: int = CELLS_AT_A_TIME) -> Iterator[csr_matrix]:
    """Yield the counts of a slice in blocks of `n_cells` rows, in order; only one block is in memory.

    Yields
    ------
    (at most n_cells, n_genes) CSR uint16 or uint32, molecules
    """
    with open_store(path) as store:
        _require_truth(store)
        for start in range(0, store.attributes("X")["shape"][0], n_cells):
            yield _read_counts(store, start, start + n_cells)


def _read_labels(store: Store) -> dict[str, StrArray]:
    names = [name for name in store.attributes("obs")["column-order"] if name not in (SOURCE_ROW, N_COUNTS, N_GENES)]
    return {name: store.read(f"obs/{name}/categories").astype(str)[store.read(f"obs/{name}/codes")] for name in names}


def _require_truth(store: Store) -> None:
    found = str(store.read("uns/format")) if "uns/format" in store else None
    if found != TRUTH_FORMAT:
        raise FormatError(f"{store.path}: found format {found!r}; expected {TRUTH_FORMAT!r}. Build the corpus again.")


def _write_counts(group: Group, counts: csr_matrix) -> None:
    """Write a CSR matrix as anndata lays it out, in the narrowest dtypes."""
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": list(counts.shape)})
    largest = int(counts.data.max(initial=0))
    dtypes = {
        "data": np.min_scalar_type(max(largest, 256)),
        "indices": np.min_scalar_type(max(counts.shape[1] - 1, 256)),
        "indptr": np.dtype(np.int64),
    }
    for name, dtype in dtypes.items():
        values = getattr(counts, name)
        write_parts(group, name, dtype, values.shape, [values], chunk=CHUNK)


def _read_counts(store: Store, start: int, stop: int) -> csr_matrix:
    """Rows `start` to `stop` of the stored CSR matrix."""
    n_cells, n_genes = store.attributes("X")["shape"]
    stop = min(stop, n_cells)
    indptr = store.read("X/indptr", start, stop + 1)
    first, last = int(indptr[0]), int(indptr[-1])
    counts = csr_matrix((stop - start, n_genes), dtype=store.dtype("X/data"))
    counts.data, counts.indptr = store.read("X/data", first, last), (indptr - first).astype(np.int32 if last - first < 2**31 else np.int64)
    counts.indices = store.read("X/indices", first, last).astype(counts.indptr.dtype)
    return counts


def _canonical(counts: csr_matrix) -> csr_matrix:
    """The matrix itself if its columns are sorted and no zero is stored, else a copy that is so."""
    if counts.has_sorted_indices and counts.data.all():
        return counts
    counts = counts.copy()
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


def _row_sums(counts: csr_matrix) -> np.ndarray:
    """Molecules of each cell, (n_cells,) uint32; blockwise, because scipy's sum copies all entries to 64 bits."""
    sums = np.zeros(counts.shape[0], np.uint32)
    for start in range(0, counts.shape[0], CELLS_AT_A_TIME):
        ends = counts.indptr[start : start + CELLS_AT_A_TIME + 1]
        running = np.concatenate([[0], np.cumsum(counts.data[ends[0] : ends[-1]], dtype=np.uint64)])
        sums[start : start + CELLS_AT_A_TIME] = np.diff(running[ends - ends[0]])
    return sums
