"""What people do with a pretrained model: embeddings, regions, cell types, evaluation, pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

    from downstream.embedding import Embedder


def embed(
    data: AnnData | SpatialData,
    model: Path | str | Embedder,
    *,
    keep_cell_embeddings: bool = False,
    measure_seams: bool = False,
    min_genes: int = 20,
    max_memory: str | None = None,
    device: str | None = None,
    **reading: Any,
) -> AnnData | SpatialData:
    """Embed a slice in memory, or an AnnData whose matrix is backed by a file; the same object is returned, with more in it.

    Adds ``obsm["X_stofm"]``, (n_cells, 256) float32, ``obs["stofm_status"]`` and the receipt ``uns["stofm"]``, of SpatialData to its table.

    Parameters
    ----------
    data : AnnData or SpatialData
    model : folder of a model, or what `downstream.embedding.load_embedder` gave, which spares loading it again
    keep_cell_embeddings, measure_seams, min_genes
        See `downstream.embedding.EmbedOptions`.
    max_memory : str, optional
        What the process may hold, as ``8GB``.
    device : str, optional
        Of a model that is loaded here; default: a GPU where there is one.
    reading
        Settings of the slice, as in `corpus.slice.SliceSpec`: ``um_per_unit``, ``spatial_key``, ``counts_layer``, ``table``, ...

    Raises
    ------
    DataError, CheckpointError, ConfigError, EnvironmentFault
        As `stofm embed` says them on one line.
    """
    from pathlib import Path

    from corpus.readers.spatialdata_zarr import table_of
    from corpus.slice import SliceSpec
    from downstream.embedding import Embedder, EmbedOptions, load_embedder
    from downstream.embedding import embed as embed_table
    from downstream.memory import parse_bytes
    from stofm.config import parse_config

    spec = parse_config(SliceSpec, {"path": "data", "technology": "anndata", **reading}, where="embed")
    options = EmbedOptions(keep_cell_embeddings, measure_seams, min_genes, None if max_memory is None else parse_bytes(max_memory))
    embedder = model if isinstance(model, Embedder) else load_embedder(Path(model), device=device)
    embed_table(table_of(data, spec) if hasattr(data, "tables") else data, embedder, spec, options)
    return data
