"""A finished corpus, opened for reading: its slices, its vocabulary, its training views."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from corpus.gene_ids import GENE_TABLES, GeneTables, read_gene_tables
from corpus.gene_vocab import GeneVocab, read_gene_vocab
from corpus.scales import GeneScale, ScaleConfig, extract_gene_scale
from corpus.shards import View
from corpus.truth import SliceTruth, read_truth
from stofm.config import parse_config
from stofm.durable import file_sha256, read_json, require_folder
from stofm.errors import ConfigError, FormatError

CORPUS_KIND = "stofm-corpus/1"


class Corpus:
    """A finished corpus, opened for reading."""

    def __init__(self, folder: Path) -> None:
        require_folder(folder, CORPUS_KIND, made_by="stofm build CONFIG")
        if not (folder / "manifest.json").is_file():
            raise ConfigError(f"corpus {folder}: found no manifest, so its build did not finish; expected one. Run `stofm build` again.")
        self.folder = folder
        self.manifest = read_json(folder / "manifest.json")
        self.slice_ids: list[str] = [entry["slice_id"] for entry in self.manifest["slices"]]

    @property
    def corpus_id(self) -> str:
        return str(self.manifest["corpus_id"])

    @cached_property
    def scales(self) -> ScaleConfig:
        return parse_config(ScaleConfig, self.manifest["config"]["scales"], where=f"corpus {self.folder}")

    @cached_property
    def vocab(self) -> GeneVocab:
        vocab = read_gene_vocab(self.folder / "gene_vocab.csv")
        if vocab.sha256 != self.manifest["vocabulary_sha256"]:
            raise FormatError(f"corpus {self.folder}: gene_vocab.csv is not the one it was built with. Build the corpus again.")
        return vocab

    @cached_property
    def gene_tables(self) -> GeneTables:
        path = self.folder / GENE_TABLES
        if not path.is_file() or file_sha256(path) != self.manifest.get("gene_tables_sha256"):
            raise FormatError(f"corpus {self.folder}: {GENE_TABLES} is missing or not the one it was built with. Build the corpus again.")
        return read_gene_tables(path)

    def truth(self, slice_id: str) -> SliceTruth:
        """Return a slice, checked against the hash in the manifest."""
        entry = next(entry for entry in self.manifest["slices"] if entry["slice_id"] == slice_id)
        path = truth_path(self.folder, slice_id)
        if not path.is_file() or file_sha256(path) != entry["truth_sha256"]:
            raise FormatError(f"corpus {self.folder}: {path.name} is missing or changed. Build the corpus again.")
        return read_truth(path)

    def gene_scale(self, slice_id: str) -> GeneScale:
        return gene_scale_of(self.truth(slice_id), self.vocab, self.scales)

    def token_view(self) -> View:
        return View(self.folder / "views" / "tokens")


def gene_scale_of(truth: SliceTruth, vocab: GeneVocab, scales: ScaleConfig) -> GeneScale:
    """Extract the gene scale of a slice of the corpus."""
    return extract_gene_scale(truth.counts, truth.human_ids, truth.coords_um, vocab, scales.rank_value)


def truth_path(folder: Path, slice_id: str) -> Path:
    """Return where a corpus keeps a slice."""
    return folder / "slices" / f"{slice_id}.zarr.zip"
