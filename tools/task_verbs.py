"""The words of the tasks that need no head of classes: `stofm cluster`, `deconvolve`, `impute`, `index` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

Embedded = Annotated[list[Path], typer.Argument(help="Slices that `stofm embed` wrote.", show_default=False)]
Spots = Annotated[list[Path], typer.Argument(help="AnnData .h5ad or other slices that `stofm embed` reads; embedded or not.", show_default=False)]
ModelFolder = Annotated[Path, typer.Option(help="Model folder: the `model/` of a run.", show_default=False)]
Out = Annotated[Path, typer.Option(help="Output folder.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there already.")]
Device = Annotated[Optional[str], typer.Option(help="cpu, cuda, ...; default: a GPU where there is one.")]  # noqa: UP045 - typer reads it
Seed = Annotated[int, typer.Option(help="Seed of all that is random.")]


def add_task_verbs(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(cluster)
    app.add_typer(deconvolve_verbs, name="deconvolve")
    app.command()(impute)
    app.add_typer(index_verbs, name="index")
    app.command()(compare)


def cluster(
    slices: Embedded,
    out: Out,
    method: Annotated[str, typer.Option(help="leiden, kmeans or gmm.")] = "leiden",
    n_clusters: Annotated[Optional[int], typer.Option(help="Number of clusters; default: told by stability.")] = None,  # noqa: UP045
    most: Annotated[int, typer.Option(help="Most clusters tried, where stability tells their number.")] = 15,
    of: Annotated[str, typer.Option(help="tissue: all three scales, for regions; cell: the gene scale alone, for types.")] = "tissue",
    label: Annotated[Optional[str], typer.Option(help="obs column with true labels, to score by.")] = None,  # noqa: UP045
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Cluster embedded slices together, without labels: a cluster means the same, and has one colour, in all of them."""
    from tools.cluster import run_cluster

    run_cluster(slices, out, of=of, label=label, overwrite=overwrite, method=method, n_clusters=n_clusters, most=most, seed=seed)


deconvolve_verbs = typer.Typer(no_args_is_help=True, help="Deconvolution: fit a head on labelled cells, predict the shares of their types in spots.")


@deconvolve_verbs.command("fit")
def deconvolve_fit(
    reference: Annotated[Path, typer.Argument(help="Labelled single cells or a labelled slice, raw counts; needs no places.", show_default=False)],
    model: ModelFolder,
    out: Annotated[Path, typer.Option(help="Folder of the head.", show_default=False)],
    label: Annotated[str, typer.Option(help="obs column with the types.")] = "cell_type",
    panel: Annotated[Optional[Path], typer.Option(help="Spots to be deconvolved: only genes that they measure too are learned from.")] = None,  # noqa: UP045
    features: Annotated[str, typer.Option(help="both, embedding or counts: what is read of a spot.")] = "both",
    coverage: Annotated[float, typer.Option(help="Share of true shares that lie within their interval.")] = 0.9,
    seed: Seed = 0,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Fit a head to pseudo-spots that are mixed from a labelled reference."""
    from tools.deconvolve import run_fit

    run_fit(reference, model, out, label=label, panel=panel, device=device, overwrite=overwrite, features=features, coverage=coverage, seed=seed)


@deconvolve_verbs.command("predict")
def deconvolve_predict(
    slices: Spots,
    head: Annotated[Path, typer.Option(help="Folder of the head.", show_default=False)],
    model: ModelFolder,
    out: Out,
    truth: Annotated[Optional[str], typer.Option(help="obsm table with true shares, a column per type, to score by.")] = None,  # noqa: UP045
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Predict the share of each type in each spot, with intervals."""
    from tools.deconvolve import run_predict

    run_predict(slices, head, model, out, truth=truth, device=device, overwrite=overwrite)


def impute(
    slices: Spots,
    reference: Annotated[Path, typer.Option(help="Cells that measure more genes, raw counts; needs no places and no labels.", show_default=False)],
    model: ModelFolder,
    out: Out,
    gene: Annotated[Optional[list[str]], typer.Option(help="A gene to impute; may be given again. Default: all not measured.")] = None,  # noqa: UP045
    neighbors: Annotated[int, typer.Option(help="Reference cells that each cell is read from.")] = 30,
    seed: Seed = 0,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Impute genes that slices do not measure from reference cells of near embeddings; each gene says how far to trust it."""
    from tools.impute import run_impute

    run_impute(slices, reference, model, out, genes=gene or [], device=device, overwrite=overwrite, n_neighbors=neighbors, seed=seed)


index_verbs = typer.Typer(no_args_is_help=True, help="Search: cells or regions like these ones across a corpus of embedded slices.")


@index_verbs.command("build")
def index_build(
    slices: Embedded,
    out: Annotated[Path, typer.Option(help="Folder of the index.", show_default=False)],
    kind: Annotated[Optional[str], typer.Option(help="flat, hnsw or ivfpq; default: by the number of cells.")] = None,  # noqa: UP045
    recall: Annotated[float, typer.Option(help="Recall@10 to reach; the search is made as hard as that takes.")] = 0.95,
    overwrite: Overwrite = False,
) -> None:
    """Index the cells of embedded slices, and their pieces of tissue; says what recall@10 against exact search is reached."""
    from tools.index import run_build

    run_build(slices, out, overwrite=overwrite, kind=kind, recall=recall)


@index_verbs.command("query")
def index_query(
    path: Annotated[Path, typer.Argument(metavar="SLICE", help="A slice that `stofm embed` wrote.", show_default=False)],
    index: Annotated[Path, typer.Option(help="Folder of the index.", show_default=False)],
    out: Annotated[Path, typer.Option(help="CSV to write.", show_default=False)],
    where: Annotated[Optional[str], typer.Option(help="column=value: cells of the slice to ask for; default: all.")] = None,  # noqa: UP045
    rows: Annotated[Optional[str], typer.Option(help="Rows of the slice to ask for: 0,17,29.")] = None,  # noqa: UP045
    region: Annotated[bool, typer.Option("--region", help="Ask for pieces of tissue like these cells as a whole.")] = False,
    k: Annotated[int, typer.Option("-k", min=1, help="Hits per cell, or per region.")] = 10,
    other_slices: Annotated[bool, typer.Option("--other-slices", help="Pass over hits in a slice of the same name.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Find the cells, or the pieces of tissue, that are most like some cells of a slice."""
    from tools.index import run_query

    run_query(path, index, out, where=where, rows=rows, region=region, k=k, other_slices=other_slices, overwrite=overwrite)


@index_verbs.command("plan")
def index_plan(vectors: Annotated[int, typer.Option(min=1, help="Cells to plan for.")] = 88_000_000) -> None:
    """Say what an index of so many cells would take on disk and in memory; bytes per vector are measured."""
    from tools.index import run_plan

    run_plan(vectors)


def compare(
    config: Annotated[Path, typer.Argument(help="YAML file; see configs/compare/.", show_default=False)],
    overrides: Annotated[Optional[list[str]], typer.Argument(help="Settings to change, key=value.", show_default=False)] = None,  # noqa: UP045
) -> None:
    """Compare the model with plain ways of clustering, deconvolution, imputation and search, on slices where the truth is known."""
    from tools.compare import run_compare

    run_compare(config, overrides or [])
