"""A slice in a few kilobytes: enough to tell whether another slice holds the same cells, whatever was done to the copy.

A cell is known by the *set* of genes detected in it. Order of rows, coordinates, normalisation and scaling do not enter, so a
copy that was turned, cropped, subsampled, shuffled or log-transformed has the same sets as its original. Where a copy has
fewer genes, the sets of both are taken on the genes they share.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash
from scipy.sparse import csr_matrix

from corpus.slice import BoolArray, FloatArray, IntArray, StrArray
from stofm.durable import replacing
from stofm.errors import FormatError

SKETCH_FORMAT = "stofm-sketch/1"
ABOUT = "sketch"  # entry of the metadata
N_HASHES = 2048  # 16 kB
N_PROBES = 256  # cells kept with their genes, fewer where cells are rich
MAX_PROBE_ENTRIES = 2**18  # at most 512 kB, and only where a cell has a thousand genes
MIN_GENES = 5  # sets of fewer genes recur in slices that have nothing to do with each other

ROW_BLOCK = 2**16

WordArray = np.ndarray  # uint64


@dataclass(frozen=True, eq=False)
class SliceSketch:
    """What the corpus remembers of a slice to find its copies.

    Attributes
    ----------
    n_cells : int
    n_sets : int
        Different gene sets among its cells, sets of fewer than `MIN_GENES` left out.
    twin_share : float
        Share of cells whose set another cell has too; see `twin_share`.
    genes : (n_genes,) uint64
        Word of each gene that was measured; see `gene_words`.
    gene_counts : (n_genes,) float64, molecules
        Sum over all cells.
    hashes : (at most N_HASHES,) uint64
        The smallest hashes of its sets, ascending: a random sample of the sets, and the same one in every copy.
    probe_genes, probe_sizes : (sum of sizes,) uint16 or uint32; (n_probes,) uint32
        Columns of `genes` detected in some of the cells: sets that can be taken again on fewer genes.
    """

    slice_id: str
    n_cells: int
    n_sets: int
    twin_share: float
    genes: WordArray
    gene_counts: FloatArray
    hashes: WordArray
    probe_genes: IntArray
    probe_sizes: IntArray

    @property
    def limit(self) -> np.uint64:
        """Up to here `hashes` holds all sets of the slice."""
        return self.hashes[-1] if self.n_sets > len(self.hashes) else np.uint64(np.iinfo(np.uint64).max)

    @cached_property
    def log_profile(self) -> FloatArray:
        """(n_genes,) float64, log of 1 + counts per million of the whole slice."""
        return np.log1p(self.gene_counts * (1e6 / max(self.gene_counts.sum(), 1.0)))

    def probe_sets(self, is_kept: BoolArray) -> WordArray:
        """Return the hashes of the probes' sets on some of `genes`, sets of fewer than `MIN_GENES` left out."""
        ends = np.concatenate([[0], np.cumsum(self.probe_sizes, dtype=np.int64)])
        probes = csr_matrix((np.ones(len(self.probe_genes), np.uint8), self.probe_genes, ends), (len(self.probe_sizes), len(self.genes)))
        return cell_sets(probes, np.where(is_kept, self.genes, np.uint64(0)))


def gene_words(gene_ids: StrArray) -> WordArray:
    """Return a 64-bit word per gene, a fixed function of its id."""
    return np.array([xxhash.xxh3_64_intdigest(gene.encode()) for gene in gene_ids.tolist()], dtype=np.uint64)


def cell_sets(counts: csr_matrix, words: WordArray) -> WordArray:
    """Hash the set of genes detected in each cell.

    Parameters
    ----------
    counts : (n_cells, n_genes) CSR
        Any positive value is a detection; no stored zeros.
    words : (n_genes,) uint64
        From `gene_words`; 0 for genes that are to be left out.

    Returns
    -------
    (at most n_cells,) uint64
        One hash per cell with at least `MIN_GENES` genes, cells in their order. Equal sets have equal hashes, different
        ones different hashes but for a chance of 2^-64.
    """
    adding = np.stack([words, (words != 0).astype(np.uint64)], axis=1)
    sets = [np.zeros(0, np.uint64)]
    for block in _row_blocks(counts):
        detected = csr_matrix((np.ones(len(block.indices), np.uint64), block.indices, block.indptr), block.shape)
        hashes, sizes = (detected @ adding).T  # sums wrap around, on purpose
        sets.append(hashes[sizes >= MIN_GENES])
    return np.concatenate(sets)


def _row_blocks(counts: csr_matrix) -> Iterator[csr_matrix]:
    """Cut a matrix into blocks of rows, so that what is made of it stays small beside it."""
    return (counts[start : start + ROW_BLOCK] for start in range(0, counts.shape[0], ROW_BLOCK))


def find_sorted(values: WordArray, table: WordArray) -> tuple[IntArray, BoolArray]:
    """Return the place of each value in a sorted table, and whether it is there (many times faster than `numpy.isin`)."""
    place = np.searchsorted(table, values)
    is_there = place < len(table)
    is_there[is_there] = table[place[is_there]] == values[is_there]
    return place, is_there


def twin_share(sets: WordArray) -> float:
    """Return the share of cells whose set another cell has too: in a sibling section, about so many would look like copies."""
    _, n = np.unique(sets, return_counts=True)
    return float(n[n > 1].sum() / n.sum()) if len(n) else 0.0


def sketch_slice(slice_id: str, counts: csr_matrix, gene_ids: StrArray) -> SliceSketch:
    """Sketch a slice of the corpus.

    Parameters
    ----------
    counts : (n_cells, n_genes) CSR, molecules
        No stored zeros.
    gene_ids : (n_genes,) str
        Human Ensembl ids, unique.
    """
    words = gene_words(gene_ids)
    rich = np.flatnonzero(np.diff(counts.indptr) >= MIN_GENES)
    of_cell = cell_sets(counts, words)
    sets, first = np.unique(of_cell, return_index=True)
    first, fits = rich[first], np.cumsum(np.diff(counts.indptr)[rich[first]]) <= MAX_PROBE_ENTRIES
    probes = counts[first[fits][:N_PROBES]]
    return SliceSketch(
        slice_id=slice_id,
        n_cells=counts.shape[0],
        n_sets=len(sets),
        twin_share=twin_share(of_cell),
        genes=words,
        gene_counts=np.sum([np.asarray(block.sum(axis=0, dtype=np.float64)).ravel() for block in _row_blocks(counts)], axis=0),
        hashes=sets[:N_HASHES],
        probe_genes=probes.indices.astype(np.min_scalar_type(max(len(words) - 1, 256))),
        probe_sizes=np.diff(probes.indptr).astype(np.uint32),
    )


def write_sketch(path: Path, sketch: SliceSketch) -> None:
    """Write a sketch as safetensors, whole or not at all; equal sketches give equal bytes."""
    from safetensors.numpy import save_file

    fields = asdict(sketch)
    arrays = {name: np.ascontiguousarray(value) for name, value in fields.items() if isinstance(value, np.ndarray)}
    about = {"format": SKETCH_FORMAT, **{name: value for name, value in fields.items() if name not in arrays}}
    with replacing(path) as aside:
        save_file(arrays, aside, metadata={ABOUT: json.dumps(about, sort_keys=True)})  # one entry: safetensors writes several in any order


def read_sketch(path: Path) -> SliceSketch:
    """Read what `write_sketch` wrote; `FormatError` if it is missing, damaged or of another format."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get(ABOUT, "{}"))
            if about.pop("format", None) != SKETCH_FORMAT:
                raise FormatError(f"{path}: found a file of another format; expected {SKETCH_FORMAT!r}. Build the corpus again.")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise FormatError(f"{path}: {error}; expected the sketch of a slice. Build the corpus again.") from error
    return SliceSketch(**about, **arrays)


def sketch_path(folder: Path, slice_id: str) -> Path:
    """Return where a corpus keeps the sketch of a slice."""
    return folder / "sketches" / f"{slice_id}.safetensors"
