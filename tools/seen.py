"""`stofm seen`: was this slice, or a copy of it, in the corpus?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from corpus.copies import Answer, Match, Verdict, corpus_sketches, find_copies
from corpus.gene_ids import GeneTableConfig, load_gene_tables
from corpus.readers import read_table, slice_name, slice_of
from corpus.slice import Slice, SliceSpec
from corpus.store import Corpus
from corpus.truth import SliceTruth, truth_of
from stofm.config import parse_config
from stofm.errors import located
from tools.console import say

MEANING: dict[Verdict, str] = {
    "seen": "its cells are in the corpus, or it holds a slice of the corpus",
    "similar": "some of its cells, or a slice with nearly the same profile, are in the corpus; look at the slices below",
    "cannot tell": "too few cells or genes to tell its cells from those of another slice",
    "not seen": "no slice of the corpus holds its cells",
}


def run_seen(spec: SliceSpec, folder: Path, *, as_json: bool = False) -> None:
    """Look for a slice in a corpus and print the verdict with its evidence."""
    corpus = Corpus(folder)
    query = _query(spec, corpus)
    answer = find_copies(query.counts, query.human_ids, corpus_sketches(corpus), corpus.truth)
    if as_json:
        print(json.dumps({"slice": slice_name(spec), "corpus_id": corpus.corpus_id, **asdict(answer)}, indent=1))
    else:
        _describe(slice_name(spec), answer)


def _query(spec: SliceSpec, corpus: Corpus) -> SliceTruth:
    """Read a slice as the corpus would, but for its places and labels, which do not matter here."""
    tables = load_gene_tables(parse_config(GeneTableConfig, corpus.manifest["config"]["genes"]["tables"], where=f"corpus {corpus.folder}"))
    with located(f"slice {slice_name(spec)!r} ({spec.path})"):
        return truth_of(_slice_without_places(spec), tables)[0]


def _slice_without_places(spec: SliceSpec) -> Slice:
    """Read a slice that need have neither a unit nor raw counts: normalised values are taken as detections where they keep zeros."""
    table = read_table(spec)
    table.obsm[spec.spatial_key] = np.stack([np.arange(table.n_obs) * 10.0, np.zeros(table.n_obs)], axis=1)
    if spec.counts_layer is None and table.X is not None:
        matrix = csr_matrix(table.X)
        matrix.eliminate_zeros()
        if matrix.nnz < np.prod(matrix.shape) and (matrix.data > 0).all() and (matrix.data != np.floor(matrix.data)).any():
            matrix.data[:] = 1
            table.X = matrix
    return slice_of(table, spec.model_copy(update={"um_per_unit": 1.0}))


def _describe(name: str, answer: Answer) -> None:
    say(f"{name}: {answer.verdict}: {MEANING[answer.verdict]}")
    say(f"  {answer.n_cells} cells with {answer.n_sets} different sets of detected genes, looked for in {answer.n_slices} slices")
    for match in answer.matches:
        if match.verdict != "not seen":
            say(f"  {_evidence(match)}")


def _evidence(match: Match) -> str:
    return (
        f"{match.slice_id}: {match.verdict}: {match.n_shared} sets in common, {match.n_query} here and {match.n_corpus} there "
        f"({match.containment:.1%}; at most {match.chance:.1%} without a common cell), on {match.n_shared_genes} genes; "
        f"profiles correlate at {match.correlation:.4f}"
    )
