"""`stofm embed`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from corpus.cell_arrays import ArrayOnDisk
from corpus.gene_ids import human_genes_of
from corpus.readers import open_table, sections_of, slice_name, slice_of
from corpus.readers.anndata_h5ad import close
from corpus.slice import SliceSpec
from corpus.steps import input_sha256
from downstream.embedding import DEFAULTS, Embedder, EmbedOptions, embed, load_embedder, receipt_of
from downstream.memory import parse_bytes
from downstream.tables import forget_names, output_suffix, read_receipt, write_embedded
from stofm.durable import check_folder, claim_folder, sweep
from stofm.errors import ConfigError, DataError, located
from tools.console import say, show_error, tracking

EMBEDDED_KIND = "stofm-embedded/1"


def embed_options(*, keep_cell_embeddings: bool, measure_seams: bool, min_genes: int, max_memory: str) -> EmbedOptions:
    """Read the options of the command line; `ConfigError` if one is none."""
    if min_genes < 1:
        raise ConfigError(f"--min-genes: found {min_genes}; expected 1 or more.")
    return EmbedOptions(keep_cell_embeddings, measure_seams, min_genes, parse_bytes(max_memory))


def run_embed(
    specs: Sequence[SliceSpec],
    model: Path,
    out: Path,
    *,
    device: str | None = None,
    options: EmbedOptions = DEFAULTS,
    scheme: str | None = None,
    exact: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Embed slices into ``out/<name>.h5ad``, or ``.zarr`` of SpatialData; returns the files, those that stood already among them.

    Slices that cannot be used are named and passed over; `DataError` at the end if there were any.
    """
    check_folder(out, EMBEDDED_KIND)
    embedder = load_embedder(model, device=device, exact=exact)
    if scheme not in (None, embedder.scales.scheme):
        raise ConfigError(f"--scheme: found {scheme!r}; expected {embedder.scales.scheme!r}, that of the model {model}. Leave the option out.")
    if out.is_dir():
        sweep(out)
    written: list[Path] = []
    refusals: list[DataError] = []
    for spec in specs:
        try:
            written.append(_embed_one(spec, embedder, out, options, overwrite=overwrite))
        except DataError as refusal:
            refusals.append(refusal)
            if len(specs) > 1:
                show_error(refusal)
    if len(specs) == len(refusals) == 1:
        raise refusals[0]
    if refusals:
        raise DataError(f"{len(refusals)} of {len(specs)} slices were not embedded; expected all. See the line of each above; the others stand.")
    return written


def _embed_one(spec: SliceSpec, embedder: Embedder, out: Path, options: EmbedOptions, *, overwrite: bool) -> Path:
    name = slice_name(spec)
    table = open_table(spec)  # says what is wrong with the input before anything else is asked
    try:
        path, input_id = out / f"{name}{output_suffix(spec)}", input_sha256(spec)
        if path.exists():
            wanted, found = receipt_of(embedder, spec, options, input_sha256=input_id), read_receipt(path) or {}
            other = [key for key in wanted if key not in found or found[key] != wanted[key]]
            if not other:
                say(f"{name}: embedded already, from the same input with the same model and settings: {path}")
                return path
            if not overwrite:
                for one in sections_of(table, spec):  # an input that cannot be used at all is what to hear of first
                    st_slice = slice_of(table, one, is_stored=True)
                    with located(f"slice {slice_name(one)!r} ({spec.path})"):
                        human_genes_of(st_slice, embedder.tables)
                raise ConfigError(f"slice {name!r}: {path} holds an embedding of another {other[0]}; expected none, or this one. "
                                  "Choose another output, or replace it with --overwrite.")  # fmt: skip
        with tracking(f"{name}: embedding"):
            forget_names(table, spec)
            beside = next(folder for folder in (out, *out.resolve().parents) if folder.is_dir())
            embed(table, embedder, spec, options, input_sha256=input_id, scratch=partial(ArrayOnDisk, beside))
            claim_folder(out, EMBEDDED_KIND)
            write_embedded(table, spec, path)
    finally:
        close(table)
    receipt = table.uns["stofm"]
    seams = "".join(f"; seams {one['seam_score']:.3f}" for one in receipt["slice_embedding"].values() if "seam_score" in one)
    say(f"{name}: {receipt['n_embedded']} of {table.n_obs} cells embedded{seams}: {path}")
    return path
