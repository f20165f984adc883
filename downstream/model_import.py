"""A published checkpoint becomes a model folder: weights, vocabulary, gene tables and how a slice must be read for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from corpus.gene_ids import GENE_TABLES, load_gene_tables
from corpus.gene_import import import_gene_vocab
from corpus.gene_vocab import GeneConfig
from corpus.rank_value import RankValueConfig
from corpus.scales import ScaleConfig
from stofm.cell_encoder import BERT_FOLDER, HEAD_STEM, CellEncoder
from stofm.checkpoint import MODEL_KIND, save_model
from stofm.durable import check_folder, file_sha256, tree_sha256
from stofm.errors import CheckpointError
from stofm.published import read_published

MOST_GENES = 2_047  # of a cell, as the published script has it: 2,048 tokens with `<cls>`


def import_published(
    se2: Path,
    config: Path,
    cell_encoder: Path,
    genes: GeneConfig,
    out: Path,
    *,
    licence: str | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write a published checkpoint as a model folder, whole or not at all; returns the folder.

    Parameters
    ----------
    se2, config : Path
        ``se2transformer.pth`` (or .safetensors) and its ``config.json``.
    cell_encoder : Path
        Folder with ``cell_bert/`` and ``cell_proj.bin`` (or .safetensors).
    genes : GeneConfig
        Names the tables of the vocabulary that the checkpoint was trained with.
    licence : str, optional
        Terms of the weights, as a person states them.
    report : function of a line
        Hears what was left out.

    Raises
    ------
    ConfigError
        If `out` holds something else, or a table is missing.
    CheckpointError, FormatError
        If a file is missing, damaged, or asks for code to be executed, or if the parts do not fit each other.
    """
    check_folder(out, MODEL_KIND)
    transformer, encoder, vocab = read_published(se2, config), CellEncoder.from_folder(cell_encoder), import_gene_vocab(genes)
    if vocab.n_tokens != encoder.n_tokens:
        raise CheckpointError(
            f"vocabulary {genes.vocabulary}: found {vocab.n_tokens:,} ids, with `<cls>`; expected {encoder.n_tokens:,}, those of the cell encoder "
            f"{cell_encoder}. Use the tables that it was trained with."
        )
    if encoder.left_out:
        report(f"left out of the cell encoder: {', '.join(encoder.left_out)}")
    scales = ScaleConfig(scheme="published", rank_value=RankValueConfig(max_tokens=min(MOST_GENES, encoder.max_tokens)))
    of_encoder = {f"cell_encoder/{name}": sha256 for name, sha256 in tree_sha256(cell_encoder).items() if name.startswith((BERT_FOLDER, HEAD_STEM))}
    published_files = {se2.name: file_sha256(se2), config.name: file_sha256(config), **of_encoder}
    texts = {
        "gene_vocab.csv": vocab.to_csv(),
        GENE_TABLES: load_gene_tables(genes.tables).to_json(),
        "scales.json": scales.model_dump_json(indent=1),
        "README.md": imported_card(published_files, licence),
    }
    trained_on = {"published_files": published_files, "vocabulary": vocab.sha256}
    save_model(out, encoder, transformer, texts=texts, trained_on=trained_on, licence=licence)
    return out


def imported_card(published_files: dict[str, str], licence: str | None) -> str:
    """Return the model card of an imported model as Markdown."""
    return f"""# SToFM model, imported from a published checkpoint

Embeds the cells of a spatial transcriptomics slice as the published script does: `stofm embed SLICE --model <this folder> --out DIR`.

## Made from

| file | sha256 |
|---|---|
{"".join(f"| {name} | {sha256} |{chr(10)}" for name, sha256 in published_files.items())}
What it was trained on is for its publishers to say; they name the corpus SToCorpus-88M, in which slices of common benchmarks are.

## Limits

Its extraction follows the axes of the file: squares, scale and clusters, and with them the embeddings, change when a slice is turned or mirrored.
A slice has no unit to it. Genes that map to one human gene are merged here, where the published script keeps both.

Licence of the weights: {licence or "not stated; ask those who published them"}.
"""
