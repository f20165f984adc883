"""`stofm embed`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from corpus.readers import read_table, slice_name
from corpus.slice import SliceSpec
from downstream.embedding import embed, load_embedder, write_table
from stofm.durable import check_folder, claim_folder
from stofm.errors import ConfigError
from tools.console import say, tracking

EMBEDDED_KIND = "stofm-embedded/1"


def run_embed(
    specs: Sequence[SliceSpec],
    model: Path,
    out: Path,
    *,
    device: str | None,
    keep_cell_embeddings: bool,
    scheme: str | None = None,
    exact: bool = False,
) -> list[Path]:
    """Embed slices into ``out/<name>.h5ad``; returns the files written."""
    check_folder(out, EMBEDDED_KIND)
    embedder = load_embedder(model, device=device, exact=exact)
    if scheme not in (None, embedder.scales.scheme):
        raise ConfigError(f"--scheme: found {scheme!r}; expected {embedder.scales.scheme!r}, that of the model {model}. Leave the option out.")
    written = []
    for spec in specs:
        name = slice_name(spec)
        with tracking(f"{name}: embedding"):
            table = embed(read_table(spec), embedder, spec, keep_cell_embeddings=keep_cell_embeddings)
            claim_folder(out, EMBEDDED_KIND)
            written.append(write_table(table, out / f"{name}.h5ad"))
        say(f"{name}: {table.uns['stofm']['n_embedded']} of {table.n_obs} cells embedded: {written[-1]}")
    return written
