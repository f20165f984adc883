"""`stofm build`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from corpus.build import CorpusConfig, build_corpus
from stofm.config import load_config
from tools.console import progress, say


def run_build(path: Path, overrides: Sequence[str], *, verify: bool, accept_new: bool) -> int:
    """Build the corpus that a configuration describes, say what became of every slice, and return how many were set aside."""
    return build_and_report(load_config(CorpusConfig, path, overrides), verify=verify, accept_new=accept_new)


def build_and_report(config: CorpusConfig, *, verify: bool = False, accept_new: bool = False) -> int:
    """Build a corpus, then print a line a slice; returns how many were set aside."""
    corpus = build_corpus(config, track=progress, report=say, verify=verify, accept_new=accept_new)
    for entry in corpus.manifest["slices"]:
        audit = entry["genes_audit"]
        say(
            f"{entry['slice_id']}: {entry['n_cells']} cells ({entry['n_cells_without_gene']} without a gene of the vocabulary) in "
            f"{entry['n_sub_slices']} sub-slices; {audit['n_mapped']} of {audit['n_genes']} genes, {audit['share_of_counts_mapped']:.1%} of counts"
        )
    aside = corpus.manifest["quarantined"]
    for record in aside:
        say(f"set aside: {record['detail']} ({record['code']})")
    say(f"corpus: {corpus.folder} ({len(corpus.slice_ids)} slices, {len(corpus.vocab.gene_ids)} genes, id {corpus.corpus_id[:12]})")
    return len(aside)
