"""`stofm`: one verb a file; this file only says which words a person may type.

Nothing heavy is imported before a verb runs, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

import stofm
from stofm.errors import StofmError
from tools.task_verbs import add_task_verbs

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="SToFM: spatial transcriptomics slices to corpus, foundation model, embeddings, regions and cell types.",
)
Config = Annotated[Path, typer.Argument(help="YAML file; see configs/README.md.", show_default=False)]
Overrides = Annotated[Optional[list[str]], typer.Argument(help="Settings to change, key=value.", show_default=False)]  # noqa: UP045 - typer reads it
Slices = Annotated[list[Path], typer.Argument(help="AnnData .h5ad, SpatialData .zarr or output folders of instruments.", show_default=False)]
Embedded = Annotated[list[Path], typer.Argument(help="Slices that `stofm embed` wrote.", show_default=False)]
UmPerUnit = Annotated[Optional[float], typer.Option(help="Micrometres per unit of the stored coordinates.")]  # noqa: UP045
SpatialKey = Annotated[str, typer.Option(help="obsm key of the coordinates.")]
CountsLayer = Annotated[Optional[str], typer.Option(help="Layer with raw counts; default X.")]  # noqa: UP045
SpeciesName = Annotated[str, typer.Option(help="auto, human or mouse.")]
ModelAt = Annotated[Path, typer.Option(help="Model folder (the `model/` of a run), or its name on the Hugging Face hub.", show_default=False)]
Out = Annotated[Path, typer.Option(help="Output folder.")]
Model = Annotated[Optional[Path], typer.Option(help="Model folder; fine-tuned heads need the one that embedded the slices.")]  # noqa: UP045
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that are there already.")]


@app.callback(invoke_without_command=True)
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        typer.echo(stofm.__version__)
        raise typer.Exit


@app.command()
def demo(out: Out = Path("demo"), seed: Annotated[int, typer.Option(help="Seed of the simulated world.")] = 0) -> None:
    """Simulate slices, then build, train, embed, segment and annotate: the whole path in minutes on a laptop."""
    from tools.demo import run_demo

    run_demo(out, seed=seed)


@app.command()
def check(
    slices: Slices,
    um_per_unit: UmPerUnit = None,
    spatial_key: SpatialKey = "spatial",
    counts_layer: CountsLayer = None,
    species: SpeciesName = "auto",
    model: Annotated[Optional[Path], typer.Option(help="Check against the genes of this model.")] = None,  # noqa: UP045
    corpus: Annotated[Optional[Path], typer.Option(help="Check against the genes of this corpus.")] = None,  # noqa: UP045
    json: Annotated[bool, typer.Option("--json", help="One JSON document for programs.")] = False,
) -> None:
    """Say of each slice what was found in it, whether it can be used, and what to do if it cannot."""
    from tools.check import run_check
    from tools.specs import slice_specs

    specs = slice_specs(slices, um_per_unit=um_per_unit, spatial_key=spatial_key, counts_layer=counts_layer, species=species)
    run_check(specs, model=model, corpus=corpus, as_json=json)


@app.command()
def build(
    config: Config,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be built, its size and the minutes; build nothing.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read every file of the corpus again; make anew what changed.")] = False,
    accept_new: Annotated[bool, typer.Option("--accept-new", help="Take in slices whose files changed since the corpus was finished.")] = False,
) -> None:
    """Build a corpus from slices; exit code 3: it is finished, but slices were set aside."""
    from tools.build import run_build

    if run_build(config, overrides or [], dry_run=dry_run, verify=verify, accept_new=accept_new):
        raise typer.Exit(3)


@app.command()
def seen(
    path: Annotated[Path, typer.Argument(metavar="SLICE", help="AnnData .h5ad or SpatialData .zarr.", show_default=False)],
    corpus: Annotated[Path, typer.Option(help="Folder of the corpus.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print verdict and evidence as JSON.")] = False,
    counts_layer: CountsLayer = None,
    species: SpeciesName = "auto",
) -> None:
    """Say whether a slice, or a copy of it, was in a corpus.

    Copies are found whatever was done to them: turned, cropped, subsampled, reordered, renamed, normalised (zeros kept), with fewer genes.

    The verdict is one of: seen (0.9 of its cells are in a slice of the corpus, or of that slice's cells in it); similar (some are, or
    the profiles are nearly equal: for a person to review); not seen; cannot tell (too few cells or genes).

    Exit code 0: the verdict was printed, whichever it is; programs read it from --json. Exit code 2: the slice or the corpus cannot be read.
    """
    from tools.seen import run_seen
    from tools.specs import slice_specs

    run_seen(slice_specs([path], counts_layer=counts_layer, species=species)[0], corpus, as_json=as_json)


corpus_verbs = typer.Typer(no_args_is_help=True, help="Show a corpus, verify it, repair it.")
app.add_typer(corpus_verbs, name="corpus")
CorpusAt = Annotated[str, typer.Argument(help="Folder or URL of a corpus.", show_default=False)]


@corpus_verbs.command("show")
def corpus_show(corpus: CorpusAt) -> None:
    """Say what a corpus holds: slices, cells, technologies, and what was set aside."""
    from tools.corpus import run_show

    run_show(corpus)


@corpus_verbs.command("verify")
def corpus_verify(corpus: CorpusAt) -> None:
    """Compare every file with its hash; a damaged shard is named with the key and offset of each damaged record."""
    from tools.corpus import run_verify

    run_verify(corpus)


@corpus_verbs.command("repair")
def corpus_repair(corpus: Annotated[str, typer.Argument(help="Folder of a corpus.", show_default=False)]) -> None:
    """Make damaged shards and stores again, to the same bytes, and touch nothing else."""
    from tools.corpus import run_repair

    run_repair(corpus)


@app.command()
def train(config: Config, overrides: Overrides = None) -> None:
    """Pretrain a model on a corpus; started again, it goes on where it stopped.

    Several processes: `accelerate launch --no_python stofm train CONFIG` or `torchrun --no-python stofm train CONFIG`.

    SIGTERM or SIGUSR1 ends it after the step at hand, with a checkpoint and exit code 75: start it again.
    """
    from tools.train import run_train

    run_train(config, overrides or [])


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    device: Annotated[str, typer.Option(help="cpu (this machine's, measured now), t4, v100, a100-80gb, h100, ...")] = "cpu",
    devices: Annotated[int, typer.Option(help="How many of them.")] = 1,
    share: Annotated[Optional[float], typer.Option(help="Share of the peak that is reached; a run's log says it. Default: 0.3.")] = None,  # noqa: UP045
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document for programs.")] = False,
) -> None:
    """Say what `stofm train CONFIG` will take: steps, cells, tokens, operations, memory, hours, disk; after a run, the facts beside it."""
    from tools.plan import run_plan

    run_plan(config, overrides or [], device=device, n_devices=devices, share=share, as_json=as_json)


@app.command()
def adapt(
    slices: Slices,
    model: ModelAt,
    out: Annotated[Path, typer.Option(help="Output folder; the adapted model will be in its `model/`.", show_default=False)],
    reference: Annotated[Optional[list[Path]], typer.Option(help="Slice on which forgetting is measured; may be given again.")] = None,  # noqa: UP045
    lora: Annotated[bool, typer.Option("--lora", help="Train small adapters beside the weights (peft) instead of the weights.")] = False,
    merge: Annotated[bool, typer.Option("--merge", help="With --lora: also write a model with the adapters added to its weights.")] = False,
    set_: Annotated[Optional[list[str]], typer.Option("--set", help="Setting to change, key=value; may be given again.")] = None,  # noqa: UP045
    um_per_unit: UmPerUnit = None,
    spatial_key: SpatialKey = "spatial",
    counts_layer: CountsLayer = None,
    species: SpeciesName = "auto",
) -> None:
    """Go on pretraining a model on your slices; report losses, probes and forgetting, before and after.

    A block of every slice is held out and measured on. Settings: docs/pretraining.md. Started again, it goes on where it stopped.
    """
    from tools.adapt import run_adapt
    from tools.specs import slice_specs

    options = {"um_per_unit": um_per_unit, "spatial_key": spatial_key, "counts_layer": counts_layer, "species": species}
    both = slice_specs([*slices, *(reference or [])], **options)
    run_adapt(both[: len(slices)], both[len(slices) :], model, out, lora=lora, merge=merge, overrides=set_ or [])


model_verbs = typer.Typer(no_args_is_help=True, help="Import a published checkpoint, show and test a model, share it.")
app.add_typer(model_verbs, name="model")


@model_verbs.command("import")
def model_import(
    se2: Annotated[Path, typer.Option(help="se2transformer.pth, or the same weights as .safetensors.", show_default=False)],
    config: Annotated[Path, typer.Option(help="Its config.json.", show_default=False)],
    cell_encoder: Annotated[Path, typer.Option(help="Folder with cell_bert/ and cell_proj.bin.", show_default=False)],
    vocabulary: Annotated[Path, typer.Option(help="Table of genes and tokens: Geneformer's dictionary (CSV or pickle), or a vocabulary CSV.")],
    out: Annotated[Path, typer.Option(help="Folder of the model.", show_default=False)],
    medians: Annotated[Optional[Path], typer.Option(help="Table of genes and medians, beside a table of tokens.")] = None,  # noqa: UP045
    symbols: Annotated[Optional[Path], typer.Option(help="Table of symbols and genes, for people.")] = None,  # noqa: UP045
    orthologs: Annotated[Optional[Path], typer.Option(help="Table of mouse and human genes; default: the shipped one.")] = None,  # noqa: UP045
    licence: Annotated[Optional[str], typer.Option(help="Terms of the weights, if you know them.")] = None,  # noqa: UP045
) -> None:
    """Write a published checkpoint as a model folder: weights only, nothing in the files is executed."""
    from tools.model import run_import

    tables = {"vocabulary": vocabulary, "medians": medians, "symbols": symbols}
    genes = {name: path and str(path) for name, path in tables.items()} | {"tables": {"orthologs": orthologs and str(orthologs)}}
    run_import(se2, config, cell_encoder, out, genes=genes, licence=licence)


@model_verbs.command("show")
def model_show(
    model: Annotated[Path, typer.Argument(help="Folder of a model.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document for programs.")] = False,
) -> None:
    """Say what a model is, and test whether turning, reordering and padding leave its representations as they are.

    Exit code 2: a file is damaged, or the self-test failed.
    """
    from tools.model import run_show

    run_show(model, as_json=as_json)


@model_verbs.command("push")
def model_push(
    model: Annotated[Path, typer.Argument(help="Folder of a model.", show_default=False)],
    repo: Annotated[str, typer.Option(help="Name on the hub: owner/name.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Show it to nobody else.")] = False,
) -> None:
    """Put a model with its card on the Hugging Face hub; `--model owner/name` then works wherever a model folder does."""
    from tools.model import run_push

    run_push(model, repo, private=private)


@app.command()
def embed(
    slices: Slices,
    model: ModelAt,
    out: Annotated[Path, typer.Option(help="Output folder.", show_default=False)],
    um_per_unit: UmPerUnit = None,
    spatial_key: SpatialKey = "spatial",
    counts_layer: CountsLayer = None,
    species: SpeciesName = "auto",
    technology: Annotated[str, typer.Option(help="Whose layout the files have; auto: told by their names.")] = "auto",
    section_key: Annotated[Optional[str], typer.Option(help="obs column, or z, that tells the sections of a file apart.")] = None,  # noqa: UP045
    device: Annotated[Optional[str], typer.Option(help="cpu, cuda, ...; default: a GPU where there is one.")] = None,  # noqa: UP045
    keep_cell_embeddings: Annotated[bool, typer.Option(help="Also write obsm['X_stofm_cell'], the gene scale alone.")] = False,
    scheme: Annotated[Optional[str], typer.Option(help="tissue or published; default: the model's, and no other is taken.")] = None,  # noqa: UP045
    max_memory: Annotated[str, typer.Option(help="What the process may hold; changes no embedding.")] = "8GB",
    min_genes: Annotated[int, typer.Option(help="Refuse slices with fewer detected genes that the model knows.")] = 20,
    seams: Annotated[bool, typer.Option("--seams", help="Measure what the borders of sub-slices do: embeds twice, by two tilings.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace embeddings of other inputs, models or settings.")] = False,
    exact: Annotated[bool, typer.Option(help="Compute every pair bias instead of reading it from a table.")] = False,
) -> None:
    """Embed slices: the same AnnData or SpatialData comes out with obsm["X_stofm"].

    Started again, it passes over slices that are embedded already. A slice that cannot be embedded does not keep the others from it.
    """
    from tools.embed import embed_options, run_embed
    from tools.specs import slice_specs

    specs = slice_specs(slices, um_per_unit=um_per_unit, spatial_key=spatial_key, counts_layer=counts_layer, species=species,
                        technology=technology, section_key=section_key)  # fmt: skip
    options = embed_options(keep_cell_embeddings=keep_cell_embeddings, measure_seams=seams, min_genes=min_genes, max_memory=max_memory)
    run_embed(specs, model, out, device=device, options=options, scheme=scheme, exact=exact, overwrite=overwrite)


@app.command()
def verify(
    embedded: Annotated[Path, typer.Argument(metavar="OUT", help="Folder that `stofm embed` wrote.", show_default=False)],
    model: Annotated[Path, typer.Option(help="The model that embedded it.", show_default=False)],
    cells: Annotated[int, typer.Option(help="Cells of each slice that are embedded again; 0: all.")] = 64,
) -> None:
    """Embed a sample of the cells of embedded slices again and compare; exit code 2: slices and rows that differ are named."""
    from tools.verify import run_verify

    run_verify(embedded, model, n_cells=cells or None)


@app.command()
def export(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A slice that `stofm embed` or a head wrote.", show_default=False)],
    to: Annotated[str, typer.Option(help="xenium-explorer, geojson or seurat.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Output folder.", show_default=False)],
    group: Annotated[Optional[str], typer.Option(help="obs column with the groups of cells; default: the first prediction there is.")] = None,  # noqa: UP045
) -> None:
    """Write an embedded or predicted slice for Xenium Explorer, as GeoJSON, or as tables that R reads."""
    from tools.export import run_export

    run_export(path, out, to=to, group=group)


def _add_head_verbs(name: str, task: Literal["region", "cell_type"], doing: str, classes: str) -> None:
    """Add `stofm <name> fit` and `stofm <name> predict`."""
    verbs = typer.Typer(no_args_is_help=True, help=f"{doing}: fit a head on labelled slices, predict {classes} of new ones.")
    app.add_typer(verbs, name=name)

    @verbs.command(help=f"Fit a head that tells {classes} apart.")
    def fit(
        slices: Embedded,
        out: Annotated[Path, typer.Option(help="Folder of the head.", show_default=False)],
        label: Annotated[str, typer.Option(help="obs column with the true labels.")] = task,
        kind: Annotated[str, typer.Option(help="linear, mlp, knn, or finetune: layers of the model learn too.")] = "linear",
        depth: Annotated[str, typer.Option(help="finetune: the last layer, all, or lora.")] = "last",
        model: Model = None,
        overwrite: Overwrite = False,
    ) -> None:
        from tools.heads import run_fit

        run_fit(slices, out, task=task, label=label, kind=kind, depth=depth, model=model, overwrite=overwrite)

    @verbs.command(help=f"Predict {classes}, with probabilities and a picture; scored where the slice has true labels.")
    def predict(
        slices: Embedded,
        head: Annotated[Path, typer.Option(help="Folder of the head.", show_default=False)],
        out: Annotated[Path, typer.Option(help="Output folder.", show_default=False)],
        coverage: Annotated[float, typer.Option(help="Share of cells whose set of labels is to hold the true one.")] = 0.9,
        min_confidence: Annotated[float, typer.Option(help="Cells whose label is less probable get none.")] = 0.0,
        max_novelty: Annotated[float, typer.Option(help="Cells with a higher out-of-distribution score (0 to 1) get no label.")] = 1.0,
        smooth: Annotated[int, typer.Option(help="Average over so many nearest cells; the raw prediction is kept beside.")] = 0,
        model: Model = None,
        overwrite: Overwrite = False,
    ) -> None:
        from tools.heads import run_predict

        options = {"coverage": coverage, "min_confidence": min_confidence, "max_novelty": max_novelty, "smooth_neighbors": smooth}
        run_predict(slices, head, out, task=task, options=options, model=model, overwrite=overwrite)


_add_head_verbs("segment", "region", "Region segmentation", "regions")
_add_head_verbs("annotate", "cell_type", "Cell type annotation", "cell types")
add_task_verbs(app)


@app.command()
def evaluate(config: Config, overrides: Overrides = None, overwrite: Overwrite = False) -> None:
    """Compare the model, its parts and plain baselines on held-out slices, donors or blocks: a table with intervals, per-class scores, pictures."""
    from tools.evaluate import run_evaluate

    run_evaluate(config, overrides or [], overwrite=overwrite)


@app.command()
def report(
    path: Annotated[Path, typer.Argument(help="An embedded slice (.h5ad), or the folder of a corpus, a run or an evaluation.", show_default=False)],
    out: Annotated[Optional[Path], typer.Option(help="File to write; default: <name>_report.html.")] = None,  # noqa: UP045
    gene: Annotated[Optional[list[str]], typer.Option(help="Slice: a gene to colour by, beside those that vary most; may be repeated.")] = None,  # noqa: UP045
) -> None:
    """Write a page to look at: a slice to explore, or the tables and curves of a corpus, a run or an evaluation; one file, no network."""
    from tools.report import run_report

    run_report(path, out, genes=gene or [])


def main() -> None:
    """Run the command line: bad input ends in one line and exit code 2; `--debug` shows where it was raised."""
    from tools.console import is_main_process, quiet_libraries, show_error

    quiet_libraries()
    try:
        app()
    except StofmError as error:
        if "--debug" in sys.argv:
            raise
        if is_main_process():
            show_error(error)
        sys.exit(error.exit_code)
