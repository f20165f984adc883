"""`stofm build`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from corpus.build import CorpusConfig, build_corpus
from stofm.config import load_config
from tools.console import say, tracking


def run_build(path: Path, overrides: Sequence[str]) -> None:
    """Build the corpus that a configuration describes and say what became of every slice."""
    build_and_report(load_config(CorpusConfig, path, overrides))


def build_and_report(config: CorpusConfig) -> None:
    """Build a corpus, then print a line a slice."""
    corpus = build_corpus(config, track=tracking, report=say)
    for entry in corpus.manifest["slices"]:
        audit = entry["genes_audit"]
        say(
            f"{entry['slice_id']}: {entry['n_cells']} cells ({entry['n_cells_without_gene']} without a gene of the vocabulary) in "
            f"{entry['n_sub_slices']} sub-slices; {audit['n_mapped']} of {audit['n_genes']} genes, {audit['share_of_counts_mapped']:.1%} of counts"
        )
    say(f"corpus: {corpus.folder} ({len(corpus.slice_ids)} slices, {len(corpus.vocab.gene_ids)} genes, id {corpus.corpus_id[:12]})")
