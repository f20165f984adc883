"""Methods of others as further rows of an evaluation, each through its public interface, where it is installed.

None is given labels; all see every slice of a task at once, as they are meant to, so slices of a task share one space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Literal

import numpy as np

from corpus.slice import FloatArray, Slice
from downstream.baselines import shared_counts
from downstream.cost import measured
from downstream.features import Features, Make
from stofm.errors import one_line

if TYPE_CHECKING:
    from anndata import AnnData

PeerName = Literal["scVI", "CellCharter", "BANKSY", "GraphST", "STAGATE", "Novae"]
N_NEIGHBORS = 6
BANKSY_LAMBDA, BANKSY_COMPONENTS = 0.8, 20


def peer_features(name: PeerName, *, seed: int) -> Make:
    """Return what makes the features of a peer; whatever goes wrong in it is the row's remark, and the evaluation goes on."""

    def make(slices: Sequence[Slice], fit_on: list[int]) -> Features:
        with measured() as cost, redirect_stdout(StringIO()):  # some print whole matrices
            try:
                joined = _joined(slices)
                features = np.asarray(_PEERS[name](joined, seed), dtype=np.float32)
            except ImportError as error:
                return Features(missing=f"not installed ({one_line(error)})")
            except Exception as error:  # another's code may raise anything, and the row says what
                return Features(missing=f"failed: {type(error).__name__}: {one_line(error)[:200]}")
        borders = np.cumsum([one.n_cells for one in slices])[:-1]
        return Features(tuple(np.split(features, borders)), cost)

    return make


def _joined(slices: Sequence[Slice]) -> AnnData:
    """Return all slices as one table of raw counts: their shared genes, ``obs["slice"]``, places side by side and far apart in micrometres."""
    import anndata

    counts, genes = shared_counts(slices)
    tables, edge = [], 0.0
    for one, of_slice in zip(slices, counts, strict=True):
        table = anndata.AnnData(of_slice.astype(np.float32))
        table.var_names = genes
        table.obsm["spatial"] = one.coords_um - one.coords_um.min(axis=0) + [edge, 0.0]
        edge = float(table.obsm["spatial"][:, 0].max()) + 10 * float(np.ptp(one.coords_um))
        tables.append(table)
    return anndata.concat(tables, label="slice", keys=[one.slice_id for one in slices], index_unique="-")


def _log_normalised(table: AnnData, *, is_scaled: bool = False) -> AnnData:
    import scanpy

    scanpy.pp.normalize_total(table)
    scanpy.pp.log1p(table)
    if is_scaled:
        scanpy.pp.scale(table, zero_center=False, max_value=10)
    return table


def _scvi(table: AnnData, seed: int) -> FloatArray:
    import scvi

    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(table, batch_key="slice")
    model = scvi.model.SCVI(table)
    model.train(enable_progress_bar=False, logger=False)
    return model.get_latent_representation()


def _cellcharter(table: AnnData, seed: int) -> FloatArray:
    import cellcharter
    import squidpy

    table.obsm["X_scVI"] = _scvi(table.copy(), seed)
    table.obs["slice"] = table.obs["slice"].astype("category")
    squidpy.gr.spatial_neighbors(table, library_key="slice", coord_type="generic", delaunay=True)
    cellcharter.gr.remove_long_links(table)
    cellcharter.gr.aggregate_neighbors(table, n_layers=3, use_rep="X_scVI", out_key="X_cellcharter", sample_key="slice")
    return table.obsm["X_cellcharter"]


def _banksy(table: AnnData, seed: int) -> FloatArray:
    from banksy.embed_banksy import generate_banksy_matrix
    from banksy.initialize_banksy import initialize_banksy
    from sklearn.decomposition import PCA

    _log_normalised(table)
    table.obs["x"], table.obs["y"] = table.obsm["spatial"].T
    quiet = dict.fromkeys(("plt_edge_hist", "plt_nbr_weights", "plt_agf_angles", "plt_theta"), False)
    graphs = initialize_banksy(table, ("x", "y", "spatial"), 15, nbr_weight_decay="scaled_gaussian", max_m=1, **quiet)
    graphs, _ = generate_banksy_matrix(table, graphs, [BANKSY_LAMBDA], max_m=1)
    matrix = graphs["scaled_gaussian"][BANKSY_LAMBDA]["adata"].X
    return PCA(BANKSY_COMPONENTS, random_state=seed).fit_transform(np.asarray(matrix))


def _graphst(table: AnnData, seed: int) -> FloatArray:
    import torch
    from GraphST import GraphST

    _log_normalised(table, is_scaled=True)
    table.var["highly_variable"] = True  # the shared genes as they are
    return GraphST.GraphST(table, device=torch.device("cpu"), random_seed=seed).train().obsm["emb"]


def _stagate(table: AnnData, seed: int) -> FloatArray:
    import STAGATE_pyG
    import torch

    _log_normalised(table)
    STAGATE_pyG.Cal_Spatial_Net(table, k_cutoff=N_NEIGHBORS, model="KNN")
    return STAGATE_pyG.train_STAGATE(table, random_seed=seed, device=torch.device("cpu")).obsm["STAGATE"]


def _novae(table: AnnData, seed: int) -> FloatArray:
    import lightning
    import novae

    lightning.seed_everything(seed, verbose=False)
    novae.spatial_neighbors(table, slide_key="slice")
    model = novae.Novae(table)  # trained here: its published weights have seen other corpora
    model.fit()
    model.compute_representations(table)
    return table.obsm["novae_latent"]


_PEERS: dict[PeerName, Callable[[AnnData, int], FloatArray]] = {
    "scVI": _scvi,
    "CellCharter": _cellcharter,
    "BANKSY": _banksy,
    "GraphST": _graphst,
    "STAGATE": _stagate,
    "Novae": _novae,
}
