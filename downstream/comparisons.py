"""The tasks that are no labels, where the truth is known: the model beside plain ways, one row per way and slice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.sparse import csr_matrix

from corpus.readers import read_slice, read_table, slice_name
from corpus.slice import FloatArray, Slice, SliceSpec, StrArray
from downstream.baselines import pca_features, with_neighbor_mean
from downstream.clustering import ClusterConfig, cluster_slices, score_clusters
from downstream.deconvolution import DeconvolveConfig, fit_deconvolver, no_embedding
from downstream.embedding import Embedder, SliceEmbedding, embed_slice, load_embedder
from downstream.features import CELL_ENCODER, ENCODER_NEIGHBORS, PCA, PCA_NEIGHBORS, STOFM
from downstream.imputation import ImputeConfig, Retrieved, retrieve, scaled_expression, score_genes
from downstream.profiles import Profiles, embed_profiles, log_expression, profiles_of, shared_genes
from downstream.pseudo_spots import draw_pseudo_spots, types_of
from downstream.search import KINDS, Embedded, IndexConfig, build_index, index_bytes
from downstream.share_baselines import nnls_shares, regression_shares, score_shares
from stofm.config import FrozenModel
from stofm.durable import claim_folder, write_json, write_text
from stofm.errors import DataError, located

COMPARISON_KIND = "stofm-comparison/1"
Row = dict[str, Any]


class ClusteringTask(FrozenModel):
    """Cluster slices together, with as many clusters as there are labels; ARI and NMI of each slice and of all."""

    task: Literal["clustering"]
    name: str
    label: str
    slices: list[SliceSpec] = Field(min_length=1)
    settings: list[ClusterConfig] = Field(default_factory=lambda: [ClusterConfig()], min_length=1)


class DeconvolutionTask(FrozenModel):
    """Take spots apart whose true shares are in an obsm table; RMSE, Jensen-Shannon divergence, Pearson correlation."""

    task: Literal["deconvolution"]
    name: str
    spots: SliceSpec
    truth: str = Field("proportions", description="obsm table with a column per type.")
    reference: SliceSpec
    label: str = "cell_type"
    same: dict[str, str] = Field(default_factory=dict, description="Names that count as one type, in the truth and in the reference: name -> type.")
    settings: DeconvolveConfig = Field(default_factory=DeconvolveConfig)


class ImputationTask(FrozenModel):
    """Hide genes of a slice and read them from another one; Pearson, Spearman and RMSE, means over genes."""

    task: Literal["imputation"]
    name: str
    query: SliceSpec
    reference: SliceSpec
    n_folds: int = Field(5, ge=2, description="Every gene that both measure is hidden once, in one of so many groups.")
    settings: ImputeConfig = Field(default_factory=ImputeConfig)


class SearchTask(FrozenModel):
    """Index slices in every way; recall of the 10 nearest against exact search, and bytes of a cell."""

    task: Literal["search"]
    name: str
    slices: list[SliceSpec] = Field(min_length=1)


Task = Annotated[ClusteringTask | DeconvolutionTask | ImputationTask | SearchTask, Field(discriminator="task")]


class CompareConfig(FrozenModel):
    """`stofm compare`: which model on which tasks."""

    model: str = Field(description="Model folder: the `model/` of a run.")
    out: str
    tasks: list[Task] = Field(min_length=1)


def compare(config: CompareConfig, *, track: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()) -> pd.DataFrame:
    """Run the tasks one by one; returns and writes a row per task, way, slice and score. What is done is kept if a later task fails."""
    out = Path(config.out)
    embedder = load_embedder(Path(config.model))
    claim_folder(out, COMPARISON_KIND)
    write_text(out / "config.yaml", config.to_yaml())
    write_json(out / "receipt.json", {"weights_sha256": embedder.model.weights_sha256, "vocabulary_sha256": embedder.vocab.sha256})
    rows: list[Row] = []
    for task in config.tasks:
        with track(f"{task.task}: {task.name}"), located(f"task {task.name!r}"):
            rows += [{"task": task.task, "name": task.name, **row} for row in _ways(task, embedder, out)]
        table = pd.DataFrame(rows)
        write_text(out / "table.csv", table.to_csv(index=False, float_format="%.4f"))
        write_text(out / "table.md", markdown_tables(table))
    return table


def _ways(task: Task, embedder: Embedder, out: Path) -> Iterator[Row]:
    if isinstance(task, ClusteringTask):
        return compare_clustering(task, embedder)
    if isinstance(task, DeconvolutionTask):
        return compare_deconvolution(task, embedder)
    if isinstance(task, ImputationTask):
        return compare_imputation(task, embedder)
    return compare_search(task, embedder, out)


def markdown_tables(table: pd.DataFrame) -> str:
    """Return a table per kind of task, a row per task, slice and way, with the scores that the kind has."""
    parts = []
    for kind, rows in table.groupby("task", sort=False):
        shown = rows.drop(columns="task").dropna(axis=1, how="all")
        lines = [f"### {kind}", "", "| " + " | ".join(shown.columns) + " |", "|" + "---|" * len(shown.columns)]
        lines += ["| " + " | ".join(_text(value) for value in row) + " |" for row in shown.itertuples(index=False)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _text(value: object) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.0f}" if value == round(value) and abs(value) > 1 else f"{value:.3f}"
    return str(value)


def compare_clustering(task: ClusteringTask, embedder: Embedder) -> Iterator[Row]:
    """Cluster by every kind of features and every setting."""
    slices = [read_slice(spec) for spec in task.slices]
    for one in slices:
        if not (one.labels.get(task.label, np.zeros(0, str)) != "").any():
            raise DataError(f"slice {one.slice_id!r}: found no {task.label!r} labels; expected some. Name their column with `labels`.")
    true = [one.labels[task.label] for one in slices]
    n_true = len(set(np.concatenate(true).tolist()) - {""})
    for features, of_slices in features_of(slices, embedder).items():
        for settings in task.settings:
            chosen = settings if settings.n_clusters else settings.model_copy(update={"n_clusters": n_true})
            found = cluster_slices(of_slices, chosen)
            row = {"features": features, "way": settings.method, "n_clusters": found.n_clusters}
            for one, labels, clusters in zip(slices, true, found.labels, strict=True):
                yield {**row, "slice": one.slice_id, **score_clusters(labels, clusters)}
            if len(slices) > 1:
                yield {**row, "slice": "all", **score_clusters(np.concatenate(true), np.concatenate(found.labels))}


def features_of(slices: list[Slice], embedder: Embedder) -> dict[str, list[FloatArray]]:
    """Plain features and the model's, of slices of one kind; nothing in them has seen a label."""
    pca, embedded = pca_features(slices, fit_on=list(range(len(slices)))), [embed_slice(one, embedder) for one in slices]
    cell = [one.cell_embeddings for one in embedded]

    def beside(of_slices: list[FloatArray]) -> list[FloatArray]:
        return [with_neighbor_mean(one, st_slice.coords_um) for one, st_slice in zip(of_slices, slices, strict=True)]

    return {PCA: pca, PCA_NEIGHBORS: beside(pca), CELL_ENCODER: cell, ENCODER_NEIGHBORS: beside(cell), STOFM: [one.cell_repr for one in embedded]}


def compare_deconvolution(task: DeconvolutionTask, embedder: Embedder) -> Iterator[Row]:
    """Non-negative least squares and regression, then heads on counts, on the embedding, and on both; types that only one side knows count too."""
    table = read_table(task.spots)
    spots, reference = (profiles_of(one, spec, embedder.tables, label=label) for one, spec, label in
                        ((table, task.spots, None), (read_table(task.reference), task.reference, task.label)))  # fmt: skip
    if not isinstance(table.obsm.get(task.truth), pd.DataFrame):
        raise DataError(f"spots {spots.name!r}: found no table obsm[{task.truth!r}]; expected a column per type. Correct `truth`.")
    truth = table.obsm[task.truth].rename(columns=lambda name: task.same.get(str(name), str(name))).T.groupby(level=0).sum().T
    reference = replace(reference, labels=np.array([task.same.get(one, one) for one in reference.labels.tolist()]))
    genes = shared_genes([spots, reference])
    spots, reference = spots.of_genes(genes), reference.of_genes(genes)
    types = types_of(reference)
    columns = sorted({*map(str, truth.columns), *types.tolist()})
    true = truth.reindex(columns=columns, fill_value=0.0).to_numpy(np.float64)
    embed = partial(embed_profiles, embedder=embedder)
    training = draw_pseudo_spots(reference, types, task.settings.pseudo_spots.n_spots, task.settings.pseudo_spots, np.random.default_rng(0))

    def scored(way: str, shares: FloatArray, **more: float) -> Row:
        full = pd.DataFrame(shares, columns=types).reindex(columns=columns, fill_value=0.0).to_numpy(np.float64)
        return {"way": way, "slice": slice_name(task.spots), "n_types": len(columns), **score_shares(true, full), **more}

    yield scored("mean of the pseudo-spots", np.tile(training.proportions.mean(axis=0), (len(true), 1)))
    yield scored("NNLS", nnls_shares(reference, types, spots))
    yield scored("ridge regression on log counts", regression_shares(training, spots))
    of_types = np.array([columns.index(one) for one in types.tolist()])
    for kind in ("counts", "embedding", "both"):
        settings = task.settings.model_copy(update={"features": kind})
        head = fit_deconvolver(reference, settings, embed=no_embedding if kind == "counts" else embed, weights_sha256=embedder.model.weights_sha256)
        found = head.predict(spots, embed)
        covered = ((found.low <= true[:, of_types]) & (true[:, of_types] <= found.high)).mean()
        yield scored(f"head on {kind}", found.mean, covered=float(covered))


def compare_imputation(task: ImputationTask, embedder: Embedder) -> Iterator[Row]:
    """Hide each group of genes in turn, from everything that is computed of the slice, and read it from the reference in every way."""
    query, reference = (read_slice(spec) for spec in (task.query, task.reference))
    measured = [_profiles_of_slice(one, spec, embedder) for one, spec in ((query, task.query), (reference, task.reference))]
    genes = shared_genes(measured)
    groups = np.array_split(np.random.default_rng(task.settings.seed).permutation(genes), task.n_folds)
    scores: dict[str, list[dict[str, FloatArray]]] = {}
    for hidden in groups:
        shown = np.setdiff1d(genes, hidden)
        true, known = (scaled_expression(one, hidden, shown) for one in measured)
        read = {"gene mean": csr_matrix(np.tile(known.mean(axis=0), (true.shape[0], 1)))}
        found = ways_to_retrieve(query, reference, measured, shown, embedder, task.settings.n_neighbors)
        for way, predicted in (read | {way: csr_matrix(one.weights @ known) for way, one in found.items()}).items():
            scores.setdefault(way, []).append(score_genes(true, predicted))
    for way, folds in scores.items():
        mean = {name: float(np.nanmean(np.concatenate([fold[name] for fold in folds]))) for name in folds[0]}
        yield {"way": way, "slice": query.slice_id, "n_genes": len(genes), **mean}


def ways_to_retrieve(query: Slice, reference: Slice, measured: list[Profiles], shown: StrArray, embedder: Embedder, k: int) -> dict[str, Retrieved]:
    """Weights of reference cells for each cell of the query, by the genes `shown` and by no other."""
    of_shown = [one.of_genes(shown) for one in measured]
    pca = _joint_pca([log_expression(one.counts) for one in of_shown])
    embedded = [embed_slice(_only(one, profiles), embedder) for one, profiles in zip((query, reference), of_shown, strict=True)]

    def by(features: Callable[[SliceEmbedding], FloatArray]) -> Retrieved:
        return retrieve(features(embedded[0]), features(embedded[1]), k)

    return {
        f"kNN, {PCA}": retrieve(*pca, k),
        f"kNN, {CELL_ENCODER}": by(lambda one: one.cell_embeddings),
        f"kNN, {STOFM}": by(lambda one: one.cell_repr),
    }


def _joint_pca(logs: list[Any]) -> tuple[FloatArray, FloatArray]:
    """Principal components of the reference (the second), each table centred by itself; 30 at most."""
    from sklearn.decomposition import PCA as Components

    query, reference = (np.asarray(one.todense()) - np.asarray(one.mean(axis=0)) for one in logs)
    fitted = Components(min(30, *reference.shape), random_state=0).fit(reference)
    return fitted.transform(query), fitted.transform(reference)


def _profiles_of_slice(st_slice: Slice, spec: SliceSpec, embedder: Embedder) -> Profiles:
    """Profiles of the cells that the slice keeps, in its order."""
    return profiles_of(read_table(spec), spec, embedder.tables).taken(st_slice.source_rows)


def _only(st_slice: Slice, profiles: Profiles) -> Slice:
    """The slice with the counts of these human genes and nothing else."""
    return replace(st_slice, counts=profiles.counts, gene_names=profiles.gene_ids, ensembl_ids=profiles.gene_ids, species="human", controls=None,
                   control_names=np.zeros(0, np.str_))  # fmt: skip


def compare_search(task: SearchTask, embedder: Embedder, out: Path) -> Iterator[Row]:
    """Build every kind of index of the slices, below the folder of the comparison."""
    slices = [read_slice(spec) for spec in task.slices]
    embedded = [Embedded(one.slice_id, embed_slice(one, embedder).cell_repr, one.coords_um) for one in slices]
    for kind in KINDS:
        folder = out / f"{task.name}_{kind}"
        meta = build_index(folder, [partial(lambda one: one, one) for one in embedded], embedder.model.weights_sha256, IndexConfig(kind=kind))
        n = sum(meta.n_cells)
        yield {"way": kind, "n_cells": n, "recall@10": meta.recall_at_10, "effort": meta.effort, "bytes_per_cell": index_bytes(folder) / n}
