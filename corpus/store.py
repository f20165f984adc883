"""A finished corpus, opened for reading: its slices, its vocabulary, its training views."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from corpus.derived import MadeFrom, derived_path
from corpus.gene_ids import GENE_TABLES, GeneTables, read_gene_tables
from corpus.gene_vocab import GeneVocab, read_gene_vocab
from corpus.scales import GeneScale, ScaleConfig, extract_gene_scale
from corpus.storage import Place
from corpus.truth import SliceTruth, read_truth
from corpus.view import View
from stofm.config import parse_config
from stofm.durable import file_sha256, require_folder
from stofm.errors import ConfigError, FormatError

TOKENS = "tokens"  # the derived step, and the view that is packed from it
CORPUS_KIND = "stofm-corpus/1"


class Corpus:
    """A finished corpus, opened for reading; in a folder of this machine or at a URL."""

    def __init__(self, where: str | Path) -> None:
        self.where = Place(where)
        if (folder := self.where.local) is not None:
            require_folder(folder, CORPUS_KIND, made_by="stofm build CONFIG")
            if not (folder / "manifest.json").is_file():
                raise ConfigError(f"corpus {folder}: found no manifest, so its build did not finish; expected one. Run `stofm build` again.")
        self.manifest = (self.where / "manifest.json").read_json()
        if self.manifest.get("format") != CORPUS_KIND:
            raise FormatError(f"corpus {where}: found format {self.manifest.get('format')!r}; expected {CORPUS_KIND!r}. Check the address.")
        self.slice_ids: list[str] = [entry["slice_id"] for entry in self.manifest["slices"]]

    @property
    def folder(self) -> Path:
        """The folder, for what has to be on this machine."""
        if self.where.local is None:
            raise ConfigError(f"corpus {self.where}: found a URL; expected a folder of this machine. Copy the corpus first.")
        return self.where.local

    @property
    def corpus_id(self) -> str:
        return str(self.manifest["corpus_id"])

    @cached_property
    def scales(self) -> ScaleConfig:
        return parse_config(ScaleConfig, self.manifest["config"]["scales"], where=f"corpus {self.where}")

    @cached_property
    def vocab(self) -> GeneVocab:
        with (self.where / "gene_vocab.csv").on_this_machine() as path:
            vocab = read_gene_vocab(path)
        if vocab.sha256 != self.manifest["vocabulary_sha256"]:
            raise FormatError(f"corpus {self.where}: gene_vocab.csv is not the one it was built with. Build the corpus again.")
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
        with (self.where / truth_path(Path(), slice_id).as_posix()).on_this_machine() as path:
            if not path.is_file() or file_sha256(path) != entry["truth_sha256"]:
                raise FormatError(f"corpus {self.where}: {truth_path(Path(), slice_id)} is missing or changed. Build the corpus again.")
            return read_truth(path)

    def gene_scale(self, slice_id: str) -> GeneScale:
        return gene_scale_of(self.truth(slice_id), self.vocab, self.scales)

    def token_view(self) -> View:
        return View(self.where / f"views/{TOKENS}", view_id=self.manifest["views"][TOKENS])


def gene_scale_of(truth: SliceTruth, vocab: GeneVocab, scales: ScaleConfig) -> GeneScale:
    """Extract the gene scale of a slice of the corpus."""
    return extract_gene_scale(truth.counts, truth.human_ids, truth.coords_um, vocab, scales.rank_value)


def token_store(folder: Path, slice_id: str, *, truth_sha256: str, vocabulary_sha256: str, scales: ScaleConfig) -> tuple[Path, MadeFrom]:
    """Return where a corpus keeps the records of a slice for the token view, and what they are made from."""
    made_from = {"truth": truth_sha256, "vocabulary": vocabulary_sha256, "scales": scales.digest()}
    return derived_path(folder, slice_id, TOKENS, made_from), made_from


def truth_path(folder: Path, slice_id: str) -> Path:
    """Return where a corpus keeps a slice."""
    return folder / "slices" / slice_id / "cells.zarr.zip"
