"""A new slice in, the same AnnData out: a representation for every cell, in its row, and a receipt of what made it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

import stofm
from corpus.gene_ids import GeneTables, gene_tables_of_model, map_to_human
from corpus.gene_vocab import GeneVocab, read_gene_vocab
from corpus.published_scheme import extract_published, published_distances
from corpus.readers import sections_of, slice_name, slice_of
from corpus.scales import GeneScale, ScaleConfig, extract_gene_scale, sub_slice_arrays
from corpus.slice import FloatArray, IntArray, Slice, SliceSpec
from corpus.sub_slices import cut_sub_slices
from corpus.virtual_cells import make_virtual_cells
from stofm.batch import SubSliceBatch, collate
from stofm.cell_encoder import embed_cells
from stofm.checkpoint import Model, load_model
from stofm.config import load_config
from stofm.distance_bias import DistanceBias
from stofm.durable import replacing
from stofm.errors import CheckpointError, ConfigError, DataError, located
from stofm.fields import EMBEDDING_DIM, STOFM_STATUS, UNS_STOFM, X_STOFM, X_STOFM_CELL
from stofm.geometry import Pairs
from stofm.published_batch import PublishedSubSlice, collate_published

if TYPE_CHECKING:
    from anndata import AnnData

EMBEDDED, NO_GENES, OTHER_SECTION = "embedded", "no gene of the vocabulary", "in another section"
SUB_SLICES_PER_BATCH = 2


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
    """

    cell_repr: FloatArray
    cell_embeddings: FloatArray
    is_embedded: np.ndarray


def load_embedder(folder: Path, *, device: str | None = None, exact: bool = False) -> Embedder:
    """Load a model folder onto `device`, by default a GPU where there is one; raises as `load_model`.

    The pair bias is read from a table made here, unless `exact` is asked for or no table comes as near as `stofm.distance_bias.TABLE_ERROR`.
    """
    model = load_model(folder)
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


def embed(table: AnnData, embedder: Embedder, spec: SliceSpec, *, keep_cell_embeddings: bool = False) -> AnnData:
    """Embed a table that a reader gave; the table itself is returned, with more in it.

    Adds ``obsm["X_stofm"]`` (n_cells, 256) float32, ``obs["stofm_status"]``, ``uns["stofm"]`` and, on request,
    ``obsm["X_stofm_cell"]``. Cells that cannot be embedded (no place, no counts, no gene of the vocabulary) keep their row: NaN,
    and the reason as status. Sections told apart by `spec.section_key` are embedded one by one.

    Raises
    ------
    DataError
        If the table breaks the `Slice` contract, or no cell of it can be embedded.
    """
    cell_repr, cell_embeddings = (np.full((table.n_obs, EMBEDDING_DIM), np.nan, np.float32) for _ in range(2))
    status = np.full(table.n_obs, OTHER_SECTION, dtype=object)
    for one in sections_of(table, spec):
        st_slice = slice_of(table, one)
        with located(f"slice {slice_name(one)!r} ({spec.path})"):
            result = embed_slice(st_slice, embedder)
        rows = st_slice.source_rows
        cell_repr[rows], cell_embeddings[rows] = result.cell_repr, result.cell_embeddings
        status[rows] = np.where(result.is_embedded, EMBEDDED, NO_GENES)
        for reason, dropped in st_slice.dropped_rows.items():
            status[dropped] = reason
    table.obsm[X_STOFM] = cell_repr
    if keep_cell_embeddings:
        table.obsm[X_STOFM_CELL] = cell_embeddings
    table.obs[STOFM_STATUS] = status
    table.uns[UNS_STOFM] = {
        "weights_sha256": embedder.model.weights_sha256,
        "vocabulary_sha256": embedder.vocab.sha256,
        "gene_tables": embedder.tables.release,
        "scales": embedder.scales.model_dump_json(),
        "slice": spec.model_dump_json(exclude={"path"}),
        "pair_bias_error": embedder.bias_error,
        "um_per_unit": st_slice.source["um_per_unit"],
        "n_embedded": int((status == EMBEDDED).sum()),
        "stofm_version": stofm.__version__,
    }
    return table


def embed_slice(st_slice: Slice, embedder: Embedder) -> SliceEmbedding:
    """Embed a slice: gene scale, virtual cells, sub-slices, SE(2) transformer; every cell comes back once, in its row."""
    ids, _ = map_to_human(st_slice, embedder.tables)
    scale = extract_gene_scale(st_slice.counts, ids, st_slice.coords_um, embedder.vocab, embedder.scales.rank_value)
    if not len(scale.rows):
        raise DataError("no cell expresses a gene of the model's vocabulary; expected some. Use a model for these genes.")
    embeddings = embed_cells(embedder.model.cell_encoder, scale.tokens, cls_token=embedder.vocab.cls_token)

    def in_rows(values: FloatArray) -> FloatArray:
        rows = np.full((st_slice.n_cells, EMBEDDING_DIM), np.nan, np.float32)
        rows[scale.rows] = values
        return rows

    is_embedded = np.zeros(st_slice.n_cells, dtype=bool)
    is_embedded[scale.rows] = True
    return SliceEmbedding(in_rows(represent_cells(scale, embeddings, embedder)), in_rows(embeddings), is_embedded)


@torch.inference_mode()
def represent_cells(scale: GeneScale, embeddings: FloatArray, embedder: Embedder) -> FloatArray:
    """Run the SE(2) transformer over a slice; (n, 256) float32 in the order of `scale`.

    Raises
    ------
    BadSlice
        Under `scheme: published`, if the cells lie in a point or a line; see `corpus.published_scheme`.
    """
    transformer = embedder.model.se2_transformer
    device = next(transformer.parameters()).device
    owned, read = (_published_input if embedder.scales.scheme == "published" else _tissue_input)(scale, embeddings, embedder.scales)
    by_size = sorted(range(len(owned)), key=lambda number: len(owned[number]))  # little padding
    cell_repr = np.empty_like(embeddings)
    for start in range(0, len(owned), SUB_SLICES_PER_BATCH):
        numbers = by_size[start : start + SUB_SLICES_PER_BATCH]
        batch, pairs = read(numbers, device)
        output, is_cell = transformer(batch, pairs).cell_repr.float().cpu().numpy(), batch.is_cell.cpu().numpy()
        for number, tokens, of_cells in zip(numbers, output, is_cell, strict=True):
            cell_repr[owned[number]] = tokens[of_cells][: len(owned[number])]
    return cell_repr


Owned = list[IntArray]  # rows of the scale that each sub-slice owns; they come first among its cells
ReadBatch = Callable[[list[int], torch.device], tuple[SubSliceBatch, Pairs | None]]  # of sub-slices with these numbers


def _tissue_input(scale: GeneScale, embeddings: FloatArray, config: ScaleConfig) -> tuple[Owned, ReadBatch]:
    virtual = make_virtual_cells(scale.coords_um, embeddings, config.virtual_cells)
    parts = cut_sub_slices(scale.coords_um, scale.keys, config.sub_slices)

    def read(numbers: list[int], device: torch.device) -> tuple[SubSliceBatch, None]:
        return collate([sub_slice_arrays(scale, embeddings, virtual, parts[number]) for number in numbers]).to(device), None

    return [one.owned for one in parts], read


def _published_input(scale: GeneScale, embeddings: FloatArray, config: ScaleConfig) -> tuple[Owned, ReadBatch]:
    order = np.argsort(scale.rows)  # cells in the order of the file
    published = extract_published(scale.coords_um[order], embeddings[order])
    places, virtual = published.places, published.virtual
    owned: Owned = [order[members] for members in published.sub_slices]

    def sub_slice(number: int) -> PublishedSubSlice:
        distances = published_distances(places[published.sub_slices[number]], virtual.coords_um)
        return PublishedSubSlice(embeddings[owned[number]], virtual.embeddings, distances)

    def read(numbers: list[int], device: torch.device) -> tuple[SubSliceBatch, Pairs]:
        return collate_published([sub_slice(number) for number in numbers], device)

    return owned, read


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
