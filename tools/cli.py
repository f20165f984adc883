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
Out = Annotated[Path, typer.Option(help="Output folder.")]


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
CorpusAt = Annotated[str, typer.Argument(help="Folder of a corpus.", show_default=False)]


@corpus_verbs.command("show")
def corpus_show(corpus: Annotated[str, typer.Argument(help="Folder or URL of a corpus.", show_default=False)]) -> None:
    """Say what a corpus holds: slices, cells, technologies, and what was set aside."""
    from tools.corpus import run_show

    run_show(corpus)


@corpus_verbs.command("verify")
def corpus_verify(corpus: CorpusAt) -> None:
    """Compare every file with its hash; a damaged shard is named with the key and offset of each damaged record."""
    from tools.corpus import run_verify

    run_verify(corpus)


@corpus_verbs.command("repair")
def corpus_repair(corpus: CorpusAt) -> None:
    """Make damaged shards and stores again, to the same bytes, and touch nothing else."""
    from tools.corpus import run_repair

    run_repair(corpus)


@app.command()
def train(config: Config, overrides: Overrides = None) -> None:
    """Pretrain a model on a corpus; started again, it goes on where it stopped.

    Several processes: `accelerate launch --no_python stofm train CONFIG` or `torchrun --no-python stofm train CONFIG`.
    """
    from tools.train import run_train

    run_train(config, overrides or [])


model_verbs = typer.Typer(no_args_is_help=True, help="Import a published checkpoint, show and test a model.")
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


@app.command()
def embed(
    slices: Slices,
    model: Annotated[Path, typer.Option(help="Model folder: the `model/` of a run.", show_default=False)],
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
    exact: Annotated[bool, typer.Option(help="Compute every pair bias instead of reading it from a table.")] = False,
) -> None:
    """Embed slices: the same AnnData comes out with obsm["X_stofm"]."""
    from tools.embed import run_embed
    from tools.specs import slice_specs

    specs = slice_specs(slices, um_per_unit=um_per_unit, spatial_key=spatial_key, counts_layer=counts_layer, species=species,
                        technology=technology, section_key=section_key)  # fmt: skip
    run_embed(specs, model, out, device=device, keep_cell_embeddings=keep_cell_embeddings, scheme=scheme, exact=exact)


def _add_head_verbs(name: str, task: Literal["region", "cell_type"], doing: str, classes: str) -> None:
    """Add `stofm <name> fit` and `stofm <name> predict`."""
    verbs = typer.Typer(no_args_is_help=True, help=f"{doing}: fit a head on labelled slices, predict {classes} of new ones.")
    app.add_typer(verbs, name=name)

    @verbs.command(help=f"Fit a head that tells {classes} apart.")
    def fit(
        slices: Embedded,
        out: Annotated[Path, typer.Option(help="Folder of the head.", show_default=False)],
        label: Annotated[str, typer.Option(help="obs column with the true labels.")] = task,
        kind: Annotated[str, typer.Option(help="linear, mlp or knn.")] = "linear",
    ) -> None:
        from tools.heads import run_fit

        run_fit(slices, out, task=task, label=label, kind=kind)

    @verbs.command(help=f"Predict {classes}, with probabilities and a picture; scored where the slice has true labels.")
    def predict(
        slices: Embedded,
        head: Annotated[Path, typer.Option(help="Folder of the head.", show_default=False)],
        out: Annotated[Path, typer.Option(help="Output folder.", show_default=False)],
    ) -> None:
        from tools.heads import run_predict

        run_predict(slices, head, out, task=task)


_add_head_verbs("segment", "region", "Region segmentation", "regions")
_add_head_verbs("annotate", "cell_type", "Cell type annotation", "cell types")


@app.command()
def evaluate(config: Config, overrides: Overrides = None) -> None:
    """Compare the model with PCA baselines on held-out slices: a table, per-class scores, pictures."""
    from tools.evaluate import run_evaluate

    run_evaluate(config, overrides or [])


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
        sys.exit(2)
