"""`stofm build`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from corpus.build import CorpusConfig, build_corpus
from corpus.estimate import plan_lines
from corpus.summary import summary_lines
from corpus.tasks import n_workers_of
from stofm.config import load_config
from tools.console import progress, say


def run_build(path: Path, overrides: Sequence[str], *, dry_run: bool, verify: bool, accept_new: bool) -> int:
    """Build the corpus that a configuration describes, say what became of every slice and cell, and return how many slices were set aside."""
    config = load_config(CorpusConfig, path, overrides)
    if not dry_run:
        return build_and_report(config, verify=verify, accept_new=accept_new)
    specs = config.all_specs()
    for line in plan_lines(specs, Path(config.out), n_workers=n_workers_of(config.tasks, len(specs))):
        say(line)
    return 0


def build_and_report(config: CorpusConfig, *, verify: bool = False, accept_new: bool = False) -> int:
    """Build a corpus and print its summary; returns how many slices were set aside."""
    corpus = build_corpus(config, track=progress, report=say, verify=verify, accept_new=accept_new)
    for line in summary_lines(corpus.manifest):
        say(line)
    say(f"corpus: {corpus.folder} ({len(corpus.slice_ids)} slices, {len(corpus.vocab.gene_ids)} genes, id {corpus.corpus_id[:12]})")
    return len(corpus.manifest["quarantined"])
