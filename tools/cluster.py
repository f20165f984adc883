"""`stofm cluster`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from corpus.readers import read_table, slice_name
from corpus.readers.table import find_coordinates, find_labels
from corpus.slice import StrArray
from downstream.clustering import ClusterConfig, cluster_slices, score_clusters
from downstream.embedding import require_embedded, write_table
from downstream.plots import plot_tissue
from stofm.config import parse_config
from stofm.durable import check_folder, claim_folder, write_json
from stofm.errors import ConfigError, DataError
from stofm.fields import UNS_STOFM, X_STOFM, X_STOFM_CELL
from tools.console import say, tracking
from tools.outputs import require_new
from tools.specs import slice_specs

CLUSTERS_KIND = "stofm-clusters/1"
COLUMN = "stofm_cluster"
OBSM = {"tissue": X_STOFM, "cell": X_STOFM_CELL}


def run_cluster(paths: Sequence[Path], out: Path, *, of: str, label: str | None, overwrite: bool, **settings: object) -> None:
    """Cluster embedded slices together; write each with ``obs["stofm_cluster"]`` and a picture, scored where `label` names true labels."""
    check_folder(out, CLUSTERS_KIND)
    config = parse_config(ClusterConfig, settings, where="options")
    if of not in OBSM:
        raise ConfigError(f"options: of: found {of!r}; expected one of {', '.join(OBSM)}.")
    specs = slice_specs(paths)
    names = [slice_name(spec) for spec in specs]
    require_new([out / f"{name}.h5ad" for name in names], overwrite=overwrite)
    tables, features, weights = [], [], None
    for name, spec in zip(names, specs, strict=True):
        table = read_table(spec)
        require_embedded(table, name, weights_sha256=weights)
        weights = str(table.uns[UNS_STOFM]["weights_sha256"])
        if OBSM[of] not in table.obsm:
            raise DataError(f"slice {name!r}: found no obsm[{OBSM[of]!r}]; expected it. Run `stofm embed --keep-cell-embeddings`.")
        tables.append(table)
        features.append(np.asarray(table.obsm[OBSM[of]]))
    true: list[StrArray] = [find_labels(table, {"true": label})["true"] for table in tables] if label else []
    with tracking(f"clustering {sum(map(len, features))} cells of {len(tables)} slices ({config.method})"):
        found = cluster_slices(features, config)
    told = "as asked" if config.n_clusters else "told by stability"
    say(f"{found.n_clusters} clusters, {told}")
    claim_folder(out, CLUSTERS_KIND)
    for number, (name, table, clusters) in enumerate(zip(names, tables, found.labels, strict=True)):
        categories = [f"cluster {one}" for one in range(1, found.n_clusters + 1)]
        table.obs[COLUMN] = pd.Categorical([one or None for one in clusters.tolist()], categories=categories)
        table.uns[COLUMN] = {"weights_sha256": weights, "of": OBSM[of], "settings": config.model_dump_json(),
                             "clustered_with": names}  # fmt: skip
        file = write_table(table, out / f"{name}.h5ad")
        score = score_clusters(true[number], clusters) if label else {}
        spatial_key = json.loads(table.uns[UNS_STOFM]["slice"])["spatial_key"]
        plot_tissue(find_coordinates(table, spatial_key), {COLUMN: clusters}, out / f"{name}.png", classes=categories)
        say(f"{name}: {file}" + "".join(f", {key.upper()} {value:.3f}" for key, value in score.items()))
    joint = score_clusters(np.concatenate(true), np.concatenate(found.labels)) if label else {}
    if len(names) > 1 and label:
        say("all slices together: " + ", ".join(f"{key.upper()} {value:.3f}" for key, value in joint.items()))
    write_json(out / "clusters.json", {"slices": names, "n_clusters": found.n_clusters, "settings": config.model_dump(), "of": of, "joint": joint,
                                       "stability": {str(key): value for key, value in found.stability.items()}})  # fmt: skip
