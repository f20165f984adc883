"""`stofm impute`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from corpus.readers import read_table, slice_name
from corpus.slice import SliceSpec, StrArray
from downstream.embedding import Embedder, load_embedder, write_table
from downstream.imputation import ImputeConfig, impute, scaled_expression
from downstream.profiles import Profiles, embed_profiles, profiles_of, shared_genes
from stofm.config import parse_config
from stofm.durable import check_folder, claim_folder
from stofm.errors import DataError
from tools.console import say, tracking
from tools.outputs import require_new
from tools.specs import slice_specs

IMPUTED_KIND = "stofm-imputed/1"


def run_impute(
    paths: Sequence[Path], reference: Path, model: Path, out: Path, *, genes: Sequence[str], device: str | None, overwrite: bool, **settings: object
) -> None:
    """Write each slice as a table of log expression: its own genes and, flagged, those imputed from the reference."""
    check_folder(out, IMPUTED_KIND)
    config, specs = parse_config(ImputeConfig, settings, where="options"), slice_specs(paths)
    require_new([out / f"{slice_name(spec)}.h5ad" for spec in specs], overwrite=overwrite)
    embedder = load_embedder(model, device=device)
    of_reference = slice_specs([reference])[0]
    known = profiles_of(read_table(of_reference), of_reference, embedder.tables)
    for spec in specs:
        _impute_one(spec, known, embedder, out, genes, config)


def _impute_one(spec: SliceSpec, known: Profiles, embedder: Embedder, out: Path, genes: Sequence[str], config: ImputeConfig) -> None:
    import anndata
    from scipy.sparse import hstack

    name, table = slice_name(spec), read_table(spec)
    measured = profiles_of(table, spec, embedder.tables)
    shared = shared_genes([measured, known])
    wanted = _wanted(name, measured, known, genes)
    with tracking(f"{name}: imputing {len(wanted)} genes from {len(known.labels)} cells of {known.name}, by {len(shared)} shared genes"):
        query, reference = (embed_profiles(one.of_genes(shared), embedder) for one in (measured, known))
        found = impute(query, reference, known, wanted, shared, config)
        own = scaled_expression(measured, measured.gene_ids, shared)
    is_imputed = np.arange(len(measured.gene_ids) + len(wanted)) >= len(measured.gene_ids)
    confidence = np.concatenate([np.full(len(measured.gene_ids), np.nan, np.float32), found.confidence])
    var = pd.DataFrame(
        {"gene_name": np.concatenate([measured.gene_names, found.gene_names]), "is_imputed": is_imputed, "imputation_confidence": confidence},
        index=np.concatenate([measured.gene_ids, wanted]).astype(object),
    )
    table.obs["stofm_imputation_similarity"] = found.similarity
    receipt = {"weights_sha256": embedder.model.weights_sha256, "reference": known.name, "n_shared_genes": len(shared),
               "unit": "log(1 + molecules per 10,000 of the shared genes)", "settings": config.model_dump_json()}  # fmt: skip
    result = anndata.AnnData(hstack([own, found.values], format="csr"), obs=table.obs, var=var, obsm=dict(table.obsm),
                             uns={**table.uns, "stofm_imputation": receipt})  # fmt: skip
    claim_folder(out, IMPUTED_KIND)
    file = write_table(result, out / f"{name}.h5ad")
    trusted = int((found.confidence >= 0.3).sum())
    say(f"{name}: {file}, {len(wanted)} genes imputed, {trusted} with a confidence of 0.3 or more (median {np.nanmedian(found.confidence):.2f})")


def _wanted(name: str, measured: Profiles, known: Profiles, genes: Sequence[str]) -> StrArray:
    """Human ids of the genes to impute: those named (id, or name in the reference), or all that the slice does not measure."""
    id_of = dict(zip(known.gene_names.tolist(), known.gene_ids.tolist(), strict=True)) | {gene: gene for gene in known.gene_ids.tolist()}
    unknown = [gene for gene in genes if gene not in id_of]
    if unknown:
        raise DataError(f"reference {known.name!r}: found no gene {unknown[0]!r}; expected every gene asked for. Correct its name.")
    asked = np.array([id_of[gene] for gene in genes]) if genes else known.gene_ids
    wanted = np.setdiff1d(asked, measured.gene_ids)
    if not len(wanted):
        raise DataError(f"slice {name!r}: measures every gene asked for; expected one that it does not. Use a reference with more genes.")
    return wanted
