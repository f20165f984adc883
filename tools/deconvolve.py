"""`stofm deconvolve fit` and `stofm deconvolve predict`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from corpus.readers import read_table, slice_name
from corpus.readers.table import find_coordinates
from corpus.slice import SliceSpec
from downstream.deconvolution import DECONVOLVER_KIND, DeconvolveConfig, Deconvolver, fit_deconvolver, load_deconvolver, save_deconvolver
from downstream.embedding import Embedder, load_embedder, write_table
from downstream.heads import most_probable
from downstream.plots import plot_tissue
from downstream.profiles import embed_profiles, profiles_of, shared_genes
from downstream.share_baselines import score_shares
from stofm.config import parse_config
from stofm.durable import MARKER, check_folder, claim_folder
from stofm.errors import DataError
from tools.console import say, tracking
from tools.outputs import require_new
from tools.specs import slice_specs

if TYPE_CHECKING:
    from anndata import AnnData

SHARES_KIND = "stofm-proportions/1"
PROPORTIONS = "stofm_proportions"  # obsm, with `_low` and `_high`: (n, C) float32, a column per type


def run_fit(
    reference: Path, model: Path, out: Path, *, label: str, panel: Path | None, device: str | None, overwrite: bool, **settings: object
) -> None:
    """Fit a head to pseudo-spots of a labelled reference."""
    check_folder(out, DECONVOLVER_KIND)
    require_new([out / MARKER], overwrite=overwrite)
    config = parse_config(DeconvolveConfig, settings, where="options")
    embedder = load_embedder(model, device=device)
    spec = slice_specs([reference])[0]
    profiles = profiles_of(read_table(spec), spec, embedder.tables, label=label)
    if panel is not None:
        of_panel = slice_specs([panel])[0]
        profiles = profiles.of_genes(shared_genes([profiles, profiles_of(read_table(of_panel), of_panel, embedder.tables)]))
    with tracking(f"mixing and embedding {config.pseudo_spots.n_spots} pseudo-spots, fitting"):
        head = fit_deconvolver(profiles, config, embed=lambda spots: embed_profiles(spots, embedder), weights_sha256=embedder.model.weights_sha256)
        save_deconvolver(out, head)
    unlabelled, rare = int((profiles.labels == "").sum()), sorted(set(profiles.labels.tolist()) - {""} - set(head.types.tolist()))
    say(f"head: {out} ({len(head.types)} types, {len(head.gene_ids)} genes; {unlabelled} cells without a label left out"
        + (f"; too few cells of {', '.join(rare)})" if rare else ")"))  # fmt: skip


def run_predict(paths: Sequence[Path], head_folder: Path, model: Path, out: Path, *, truth: str | None, device: str | None, overwrite: bool) -> None:
    """Predict the shares of types in the spots of slices; scored where ``obsm[truth]`` holds the true ones."""
    check_folder(out, SHARES_KIND)
    specs = slice_specs(paths)
    require_new([out / f"{slice_name(spec)}.h5ad" for spec in specs], overwrite=overwrite)
    head, embedder = load_deconvolver(head_folder), load_embedder(model, device=device)
    if head.weights_sha256 != embedder.model.weights_sha256:
        raise DataError(f"model {model}: found weights {embedder.model.weights_sha256[:12]}; expected {head.weights_sha256[:12]}, those the head "
                        f"{head_folder} was fitted with. Give that model.")  # fmt: skip
    for spec in specs:
        _predict_one(spec, head, embedder, out, truth)


def _predict_one(spec: SliceSpec, head: Deconvolver, embedder: Embedder, out: Path, truth: str | None) -> None:
    name, table = slice_name(spec), read_table(spec)
    true = _true_shares(table, name, truth, head.types.tolist()) if truth else None
    with tracking(f"{name}: deconvolving {table.n_obs} spots"):
        found = head.predict(profiles_of(table, spec, embedder.tables), lambda spots: embed_profiles(spots, embedder))
    for suffix, values in (("", found.mean), ("_low", found.low), ("_high", found.high)):
        table.obsm[PROPORTIONS + suffix] = pd.DataFrame(values, index=table.obs_names, columns=[one.replace("/", "_") for one in found.types])
    table.uns[PROPORTIONS] = {"weights_sha256": head.weights_sha256, "coverage": head.config.coverage, "settings": head.config.model_dump_json()}
    claim_folder(out, SHARES_KIND)
    file = write_table(table, out / f"{name}.h5ad")
    if spec.spatial_key in table.obsm:
        panels = {"most frequent type": most_probable(found.types, found.mean)}
        plot_tissue(find_coordinates(table, spec.spatial_key), panels, out / f"{name}.png", classes=found.types.tolist())
    score = ""
    if true is not None:
        scores = score_shares(true, found.mean)
        covered = float(((found.low <= true) & (true <= found.high)).mean())
        score = f", RMSE {scores['rmse']:.3f}, JSD {scores['jsd']:.3f}, Pearson {scores['pearson']:.3f}, intervals cover {covered:.3f}"
    say(f"{name}: {file}{score}")


def _true_shares(table: AnnData, name: str, key: str, types: list[str]) -> np.ndarray:
    """(n, C) float64 shares of the head's types; a type that the table does not know has none."""
    found = table.obsm.get(key)
    if not isinstance(found, pd.DataFrame) or not set(map(str, found.columns)) & set(types):
        raise DataError(f"spots {name!r}: found no table obsm[{key!r}] with a column of one of the types {', '.join(types)}; expected it. "
                        "Leave --truth out.")  # fmt: skip
    return found.reindex(columns=types, fill_value=0.0).to_numpy(np.float64)
