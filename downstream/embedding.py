"""A new slice in, the same AnnData out: a representation for every cell, in its row, and a receipt of what made it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import stofm
from corpus.cell_arrays import BLOCK_CELLS, CellArray, NewArray, row_blocks, sum_of_rows
from corpus.gene_ids import GeneTables, gene_tables_of_model, human_genes_of
from corpus.gene_vocab import GeneVocab, read_gene_vocab
from corpus.readers import sections_of, slice_name, slice_of, technology_of
from corpus.scales import GeneScale, ScaleConfig, extract_gene_scale
from corpus.slice import FloatArray, IntArray, Slice, SliceSpec
from corpus.sub_slices import cut_sub_slices
from corpus.virtual_cells import VirtualCells, make_virtual_cells, means_of
from downstream.memory import BYTES_PER_CELL, BYTES_PER_CELL_IN_MEMORY, halving, require_room, return_freed
from downstream.representation import represent_cells
from downstream.seams import Seams, cosine_difference, measure_seams
from stofm.cell_encoder import TOKENS_PER_BATCH, embed_cells
from stofm.checkpoint import Model, load_model
from stofm.config import load_config
from stofm.distance_bias import DistanceBias
from stofm.durable import replacing
from stofm.errors import CheckpointError, ConfigError, DataError, located
from stofm.fields import EMBEDDING_DIM, STOFM_STATUS, UNS_STOFM, X_STOFM, X_STOFM_CELL

if TYPE_CHECKING:
    from anndata import AnnData

EMBEDDED, NO_GENES, OTHER_SECTION = "embedded", "no gene of the vocabulary", "in another section"


@dataclass(frozen=True, eq=False)
class Embedder:
    """A model with all that it needs to read a slice as it was trained to: vocabulary, gene tables and scale settings.

    `bias_error` is the largest error of its pair bias as measured: that of a table, or 0 where every bias is computed.
    """

    model: Model
    vocab: GeneVocab
    tables: GeneTables
    scales: ScaleConfig
    bias_error: float = 0.0


@dataclass(frozen=True)
class EmbedOptions:
    """What a caller may ask of an embedding beside the model; none of it changes a representation.

    Attributes
    ----------
    keep_cell_embeddings : bool
        Also keep the gene scale alone.
    measure_seams : bool
        Embed by a second tiling too and compare (`downstream.seams`); the SE(2) transformer then works twice.
    min_genes : int
        Slices with fewer detected genes of the model's vocabulary are refused; `stofm embed` and `downstream.embed` ask for 20.
    max_memory : int or None
        Bytes that the process may hold; None: whatever it takes.
    """

    keep_cell_embeddings: bool = False
    measure_seams: bool = False
    min_genes: int = 1
    max_memory: int | None = None


DEFAULTS = EmbedOptions()


@dataclass(frozen=True, eq=False)
class SliceEmbedding:
    """What a model says of a slice, in the order of its rows.

    Attributes
    ----------
    cell_repr : (n_cells, 256) float32
        All three scales; NaN in rows that could not be embedded.
    cell_embeddings : (n_cells, 256) float32
        The gene scale alone; NaN likewise.
    is_embedded : (n_cells,) bool
    summary : {str: array or number}
        The slice as a whole: ``mean`` and ``spread`` (standard deviation) of the representation over its cells, (256,) float32; the mean over the
        members of each virtual cell, ``virtual_mean`` (V, 256), and their number, ``virtual_sizes`` (V,), the largest first; and, if measured,
        ``seam_score`` and ``seam_pairs``.
    """

    cell_repr: FloatArray
    cell_embeddings: FloatArray
    is_embedded: np.ndarray
    summary: dict[str, np.ndarray | float]


def load_embedder(where: str | Path, *, device: str | None = None, exact: bool = False) -> Embedder:
    """Load a model, from a folder or the hub, onto `device`, by default a GPU where there is one; raises as `load_model`.

    The pair bias is read from a table made here, unless `exact` is asked for or no table comes as near as `stofm.distance_bias.TABLE_ERROR`.
    """
    model = load_model(where)
    folder = model.folder
    vocab = read_gene_vocab(folder / "gene_vocab.csv")
    if vocab.n_tokens != model.cell_encoder.n_tokens:
        raise CheckpointError(
            f"model {folder}: its vocabulary has {vocab.n_tokens} ids, its encoder {model.cell_encoder.n_tokens}; expected the same."
        )
    scales = load_config(ScaleConfig, folder / "scales.json")
    if (scales.scheme == "published") != (model.se2_transformer.config.scheme == "published"):
        raise CheckpointError(
            f"model {folder}: scales.json has scheme {scales.scheme!r}, model.json {model.se2_transformer.config.scheme!r}; expected one scheme."
        )
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    for module in (model.cell_encoder, model.se2_transformer):
        module.to(target)
    bias_error = 0.0 if exact else tabulate(model.se2_transformer.pair_bias)
    return Embedder(model, vocab, gene_tables_of_model(folder), scales, bias_error)


def tabulate(pair_bias: DistanceBias) -> float:
    """Make the table of a pair bias and return its error; 0 where none comes near enough, and every bias is computed."""
    try:
        return pair_bias.tabulate()
    except ConfigError:
        return 0.0


def embed(
    table: AnnData,
    embedder: Embedder,
    spec: SliceSpec,
    options: EmbedOptions = DEFAULTS,
    *,
    input_sha256: str = "",
    scratch: NewArray | None = None,
) -> AnnData:
    """Embed a table that a reader gave; the table itself is returned, with more in it.

    Adds ``obsm["X_stofm"]`` (n_cells, 256) float32, ``obs["stofm_status"]``, ``uns["stofm"]`` (the receipt) and, on request,
    ``obsm["X_stofm_cell"]``. Cells that cannot be embedded (no place, no counts, no gene of the vocabulary) keep their row: NaN,
    and the reason as status. Sections told apart by `spec.section_key` are embedded one by one. Nothing is added if it fails.

    Parameters
    ----------
    input_sha256 : str
        Names the input in the receipt; default: the hash of the counts and places of the slice.
    scratch : NewArray, optional
        Makes the arrays of all cells, as `corpus.cell_arrays.ArrayOnDisk` does; counts then stay where they are, and what is added to `obsm` is
        read when it is written (a dask array). Needs `input_sha256`. Default: all in memory.

    Raises
    ------
    DataError
        If the table breaks the `Slice` contract, or too few genes or no cell of it can be embedded.
    EnvironmentFault
        If memory runs out, or `options.max_memory` does not suffice.
    """
    new_array = scratch or np.zeros
    added = {X_STOFM: _no_numbers(new_array, table.n_obs)}
    if options.keep_cell_embeddings:
        added[X_STOFM_CELL] = _no_numbers(new_array, table.n_obs)
    status = np.empty(table.n_obs, dtype=object)
    status.fill(OTHER_SECTION)  # one text for all; `np.full` makes one each
    summaries, content = {}, hashlib.sha256()
    for one in sections_of(table, spec):
        st_slice = slice_of(table, one, is_stored=scratch is not None)
        with located(f"slice {slice_name(one)!r} ({spec.path})"):
            result = _embed_in_tissue_order(st_slice, embedder, options, scratch=scratch)
        for reason, dropped in {**st_slice.dropped_rows, NO_GENES: st_slice.source_rows}.items():
            status[dropped] = reason
        rows = st_slice.source_rows[result.rows]
        status[rows] = EMBEDDED
        for key, values in ((X_STOFM, result.cell_repr), (X_STOFM_CELL, result.cell_embeddings)):
            if key in added:
                _place(values, added[key], rows)
        summaries[st_slice.slice_id] = result.summary
        if not input_sha256:
            for array in (st_slice.counts.indptr, st_slice.counts.indices, st_slice.counts.data, st_slice.coords_um):
                content.update(flat_bytes(array))
    for key, values in added.items():
        table.obsm[key] = values if scratch is None else _read_when_written(values)
    table.obs[STOFM_STATUS] = status
    table.uns[UNS_STOFM] = {
        **receipt_of(embedder, spec, options, input_sha256=input_sha256 or content.hexdigest()),
        "pair_bias_error": embedder.bias_error,
        "um_per_unit": st_slice.source["um_per_unit"],
        "n_embedded": int((status == EMBEDDED).sum()),
        "x_stofm_sha256": sha256_of(added[X_STOFM]),
        "slice_embedding": summaries,
    }
    return table


def _no_numbers(new_array: NewArray, n_cells: int) -> CellArray:
    """A row of NaN for every cell."""
    array = new_array((n_cells, EMBEDDING_DIM), np.float32)
    for block in row_blocks(n_cells):
        array[block] = np.nan
    return array


def _place(values: CellArray, into: CellArray, rows: IntArray) -> None:
    """Write the rows of one array to these rows of another."""
    for block in row_blocks(len(rows)):
        into[rows[block]] = values[block]


def _read_when_written(values: CellArray) -> Any:
    """An array on disk as one that AnnData writes block by block."""
    from dask.array import from_array

    return from_array(values, chunks=(BLOCK_CELLS, -1), name=False, meta=np.empty((0, 0), values.dtype))


def sha256_of(values: CellArray) -> str:
    """Return the sha256 of the bytes of an array, row by row."""
    content = hashlib.sha256()
    for block in row_blocks(len(values)):
        content.update(flat_bytes(values[block]))
    return content.hexdigest()


def flat_bytes(array: np.ndarray) -> memoryview:
    """Return the bytes of an array, row by row, for hashing."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def receipt_of(embedder: Embedder, spec: SliceSpec, options: EmbedOptions, *, input_sha256: str) -> dict[str, str | int | bool]:
    """Return what an embedding depends on; equal receipts mean equal embeddings."""
    return {
        "weights_sha256": embedder.model.weights_sha256,
        "vocabulary_sha256": embedder.vocab.sha256,
        "gene_tables": embedder.tables.release,
        "gene_tables_sha256": embedder.tables.sha256,
        "scales": embedder.scales.model_dump_json(),
        "slice": spec.model_dump_json(exclude={"path"}),
        "technology": technology_of(spec),
        "input_sha256": input_sha256,
        "keep_cell_embeddings": options.keep_cell_embeddings,
        "measure_seams": options.measure_seams,
        "min_genes": options.min_genes,
        "is_bias_exact": embedder.bias_error == 0,
        "stofm_version": stofm.__version__,
    }


@dataclass(frozen=True, eq=False)
class _InTissueOrder:
    """What a model says of the cells of a slice that can be embedded, (n, 256) float32 each, and their rows, (n,) int64; see `SliceEmbedding`."""

    rows: IntArray
    cell_repr: CellArray
    cell_embeddings: CellArray
    summary: dict[str, np.ndarray | float]


def embed_slice(st_slice: Slice, embedder: Embedder, options: EmbedOptions = DEFAULTS, *, wanted: IntArray | None = None) -> SliceEmbedding:
    """Embed a slice: gene scale, virtual cells, sub-slices, SE(2) transformer; every cell comes back once, in its row.

    With `wanted`, rows of the slice, only these are sure to be represented, and to be what they are in the whole; others may be NaN.
    """
    found = _embed_in_tissue_order(st_slice, embedder, options, wanted=wanted)
    cell_repr, cell_embeddings = (np.full((st_slice.n_cells, EMBEDDING_DIM), np.nan, np.float32) for _ in range(2))
    cell_repr[found.rows], cell_embeddings[found.rows] = found.cell_repr[:], found.cell_embeddings[:]
    is_embedded = np.zeros(st_slice.n_cells, dtype=bool)
    is_embedded[found.rows] = True
    return SliceEmbedding(cell_repr, cell_embeddings, is_embedded, found.summary)


def _embed_in_tissue_order(
    st_slice: Slice, embedder: Embedder, options: EmbedOptions, *, wanted: IntArray | None = None, scratch: NewArray | None = None
) -> _InTissueOrder:
    """As `embed_slice`; arrays of all cells come from `scratch`, by default they are in memory."""
    is_in_memory = scratch is None or embedder.scales.scheme == "published"
    require_room(st_slice.n_cells, options.max_memory, bytes_per_cell=BYTES_PER_CELL_IN_MEMORY if is_in_memory else BYTES_PER_CELL)
    new_array = scratch or np.zeros
    scale = read_gene_scale(st_slice, embedder, min_genes=options.min_genes, new_array=new_array)
    return_freed()
    encoder = embedder.model.cell_encoder
    embeddings = new_array((len(scale.rows), EMBEDDING_DIM), np.float32)
    halving(
        lambda n_tokens: embed_cells(encoder, scale.tokens, cls_token=embedder.vocab.cls_token, tokens_per_batch=n_tokens, into=embeddings),
        TOKENS_PER_BATCH["cpu" if next(encoder.parameters()).device.type == "cpu" else "gpu"],
        what="cells",
    )
    is_wanted = None if wanted is None else np.isin(scale.rows, wanted)
    virtual = None if embedder.scales.scheme == "published" else make_virtual_cells(scale.coords_um, embeddings, embedder.scales.virtual_cells)
    return_freed()

    def represent(**more: Any) -> CellArray:
        return represent_cells(scale, embeddings, embedder, virtual=virtual, max_memory=options.max_memory, new_array=new_array, **more)

    cell_repr = represent(is_wanted=is_wanted)
    summary = _summary(cell_repr, virtual) if wanted is None else {}
    if options.measure_seams and virtual is not None:
        seams = _seams(scale, cell_repr, represent(is_shifted=True), embedder.scales)
        summary |= {"seam_score": seams.score, "seam_pairs": seams.n_pairs}
    return _InTissueOrder(scale.rows, cell_repr, embeddings, summary)


def read_gene_scale(st_slice: Slice, embedder: Embedder, *, min_genes: int = 0, new_array: NewArray = np.zeros) -> GeneScale:
    """Return the gene scale of a slice as the model reads it; `DataError` if it expresses too few genes of the vocabulary, or none."""
    ids = human_genes_of(st_slice, embedder.tables)
    scale = extract_gene_scale(st_slice.counts, ids, st_slice.coords_um, embedder.vocab, embedder.scales.rank_value, new_array=new_array)
    if scale.n_genes < min_genes:
        raise DataError(
            f"{scale.n_genes} genes with counts are in the model's vocabulary; expected at least {min_genes}. Use a model for these genes, "
            "or lower `min_genes` (command line: --min-genes)."
        )
    if not len(scale.rows):
        raise DataError("no cell expresses a gene of the model's vocabulary; expected some. Use a model for these genes.")
    return scale


def _summary(cell_repr: CellArray, virtual: VirtualCells | None) -> dict[str, np.ndarray | float]:
    """The slice as a whole; sums come row after row, so that blocks change no bit."""
    n = len(cell_repr)
    middle = sum_of_rows(lambda block: cell_repr[block], n, np.float32) / np.float32(n)
    squares = sum_of_rows(lambda block: (cell_repr[block] - middle) ** 2, n, np.float32)
    mean = (sum_of_rows(lambda block: cell_repr[block], n, np.float64) / n).astype(np.float32)
    summary: dict[str, np.ndarray | float] = {"mean": mean, "spread": np.sqrt(squares / np.float32(n))}
    if virtual is not None and len(virtual.sizes):
        by_size = np.argsort(-virtual.sizes, kind="stable")
        means = means_of(virtual.of_cell, virtual.sizes, cell_repr).astype(np.float32)
        summary |= {"virtual_mean": means[by_size], "virtual_sizes": virtual.sizes[by_size]}
    return summary


def _seams(scale: GeneScale, cell_repr: CellArray, shifted: CellArray, config: ScaleConfig) -> Seams:
    owners = []
    for is_shifted in (False, True):
        owners.append(np.empty(len(cell_repr), np.int64))
        for number, one in enumerate(cut_sub_slices(scale.coords_um, scale.keys, config.sub_slices, is_shifted=is_shifted)):
            owners[-1][one.owned] = number
    return measure_seams(scale.coords_um, (owners[0], cosine_difference(cell_repr)), (owners[1], cosine_difference(shifted)))


def require_embedded(table: AnnData, name: str, *, weights_sha256: str | None = None) -> FloatArray:
    """Return ``obsm["X_stofm"]`` of an embedded table; `DataError` if it has none, or one of another model."""
    if X_STOFM not in table.obsm or UNS_STOFM not in table.uns:
        raise DataError(f"slice {name!r}: found no obsm[{X_STOFM!r}]; expected an embedded slice. Run `stofm embed` on it first.")
    found = str(table.uns[UNS_STOFM]["weights_sha256"])
    if weights_sha256 is not None and found != weights_sha256:
        raise DataError(
            f"slice {name!r}: embedded with model {found[:12]}; expected {weights_sha256[:12]}, that of the head. Embed it with the same model."
        )
    return np.asarray(table.obsm[X_STOFM])


def write_table(table: AnnData, path: Path) -> Path:
    """Write an AnnData as ``.h5ad``, whole or not at all; returns the path."""
    with replacing(path) as aside:
        table.write_h5ad(aside, compression="gzip")
    return path
