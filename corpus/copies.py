"""Was this slice, or a copy of it, in the corpus? Sketches propose slices, their truths decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.sparse import csr_matrix

from corpus.overlap import COPY, MAX_CHANCE, MIN_SETS, Finding, judge, looks_requantified, overlap_of_sets, profile_correlations, shares_enough_genes
from corpus.sketch import SliceSketch, WordArray, cell_sets, find_sorted, gene_words, read_sketch, sketch_path, sketch_slice, twin_share
from corpus.slice import BoolArray, FloatArray, StrArray
from corpus.store import Corpus
from corpus.truth import SliceTruth

Verdict = Literal["seen", "similar", "cannot tell", "not seen"]
STRENGTH: tuple[Verdict, ...] = ("seen", "similar", "cannot tell", "not seen")
VERDICT_OF: dict[Finding, Verdict] = {"copy": "seen", "overlap": "similar", "unclear": "cannot tell", "distinct": "not seen"}

N_SAMPLE, MAX_SAMPLE_ENTRIES = 8192, 2**20  # cells of the slice that propose, and detections in them; all of them decide
N_MOST_ALIKE = 3  # slices that are looked at for their profile alone
MAX_CANDIDATES = 20
UNLIKE = 0.3  # below this correlation of profiles no copy is; a tenth of a real slice, cropped, is at 0.75 and more with the whole
SUSPECT = 0.9  # where sets cannot tell, a slice is suspect from this correlation on


@dataclass(frozen=True)
class Match:
    """One slice of the corpus beside the slice that was asked about.

    Attributes
    ----------
    n_shared_genes : int
        Genes that both measured: all that is said here is said about these.
    n_shared, n_query, n_corpus : int
        Gene sets that both have, and those of each.
    containment : float
        Share of the sets of one side that the other has; of the side that has more of its own in the other.
    chance : float
        So much of it could be there without a copy.
    correlation : float
        Of the log-profiles.
    """

    slice_id: str
    verdict: Verdict
    containment: float
    chance: float
    correlation: float
    n_shared: int
    n_query: int
    n_corpus: int
    n_shared_genes: int


@dataclass(frozen=True)
class Answer:
    """The verdict over a corpus, and the slices that were looked at, the strongest evidence first."""

    verdict: Verdict
    n_cells: int
    n_sets: int
    n_slices: int
    matches: tuple[Match, ...]


def find_copies(counts: csr_matrix, human_ids: StrArray, sketches: Sequence[SliceSketch], read_truth: Callable[[str], SliceTruth]) -> Answer:
    """Look for a slice in a corpus.

    Parameters
    ----------
    counts : (n_cells, n_genes) CSR
        Counts, or any transform of them that keeps zeros; no stored zeros.
    human_ids : (n_genes,) str
        Human Ensembl ids, unique, mapped as those of the corpus.
    sketches : of all slices of the corpus
    read_truth
        Gives the truth of a slice; called for at most `MAX_CANDIDATES` of them.
    """
    query = sketch_slice("", counts, human_ids)
    correlations = profile_correlations([query], sketches)[0][0]
    matches = [
        compare(counts, human_ids, read_truth(sketches[number].slice_id), correlation=float(correlations[number]))
        for number in _candidates(counts, query, sketches, correlations)
    ]
    matches.sort(key=lambda match: (STRENGTH.index(match.verdict), -match.containment, -match.correlation, match.slice_id))
    verdict = matches[0].verdict if matches else "not seen"
    if verdict == "not seen" and (query.n_sets < MIN_SETS or query.twin_share > MAX_CHANCE):
        verdict = "cannot tell"
    return Answer(verdict, query.n_cells, query.n_sets, len(sketches), tuple(matches))


def compare(counts: csr_matrix, human_ids: StrArray, truth: SliceTruth, *, correlation: float) -> Match:
    """Compare a slice with one of the corpus, all cells of both, on the genes that both measured."""
    query_words, corpus_words = gene_words(human_ids), gene_words(truth.human_ids)
    is_shared = np.isin(query_words, corpus_words)
    query_sets = cell_sets(counts, np.where(is_shared, query_words, np.uint64(0)))
    corpus_sets = cell_sets(truth.counts, np.where(np.isin(corpus_words, query_words), corpus_words, np.uint64(0)))
    found, n_shared_genes = overlap_of_sets(query_sets, corpus_sets), int(is_shared.sum())
    is_query_inside = found.of_first >= found.of_second
    chance = twin_share(corpus_sets if is_query_inside else query_sets)
    verdict = VERDICT_OF[judge(found.n_shared, found.n_first if is_query_inside else found.n_second, chance)]
    n_genes, n_cells = (len(human_ids), len(truth.human_ids)), (counts.shape[0], truth.counts.shape[0])
    if verdict != "seen" and looks_requantified(n_genes, n_shared_genes, n_cells, correlation):
        verdict = "similar"
    containment = max(found.of_first, found.of_second)
    if verdict == "cannot tell" and correlation < SUSPECT and containment < COPY:
        verdict = "not seen"
    return Match(
        slice_id=truth.slice_id,
        verdict=verdict,
        containment=containment,
        chance=chance,
        correlation=correlation,
        n_shared=found.n_shared,
        n_query=found.n_first,
        n_corpus=found.n_second,
        n_shared_genes=n_shared_genes,
    )


def _candidates(counts: csr_matrix, query: SliceSketch, sketches: Sequence[SliceSketch], correlations: FloatArray) -> list[int]:
    """Return the slices that are worth a look at their truth: those that share a set, and the few whose profile is most alike."""
    n_sample = min(N_SAMPLE, max(1, MAX_SAMPLE_ENTRIES * counts.shape[0] // max(counts.nnz, 1)))
    sample = counts[np.random.default_rng(0).permutation(counts.shape[0])[:n_sample]]
    sets_on: dict[bytes, WordArray] = {}  # by genes: slices of one panel share them
    order = np.argsort(query.genes)
    shares = np.full(len(sketches), -1.0)  # below 0: no copy is possible
    for number in np.flatnonzero(correlations >= UNLIKE).tolist():
        sketch = sketches[number]
        place, is_shared = find_sorted(sketch.genes, query.genes[order])
        if not shares_enough_genes(query, sketch, int(is_shared.sum())):
            continue
        words = np.zeros_like(query.genes)
        words[order[place[is_shared]]] = sketch.genes[is_shared]
        key = (words != 0).tobytes()
        if key not in sets_on:
            sets_on[key] = np.sort(cell_sets(sample, words))
        shares[number] = _share_in_common(sets_on[key], sketch, is_shared)
    alike = np.lexsort((-correlations, shares < 0))[:N_MOST_ALIKE]
    is_worth = shares > 0
    is_worth[alike] = shares[alike] >= 0
    return [int(number) for number in np.lexsort((-correlations, -shares))[:MAX_CANDIDATES] if is_worth[number]]


def _share_in_common(sets: WordArray, sketch: SliceSketch, is_shared: BoolArray) -> float:
    """Estimate the overlap both ways: the query's sorted sets among the sketch's hashes, the sketch's probes among the query's sets."""
    sampled, probes = sets[: np.searchsorted(sets, sketch.limit, side="right")], sketch.probe_sets(is_shared)
    found = (find_sorted(sampled, sketch.hashes)[1], find_sorted(probes, sets)[1])
    return max(float(is_found.sum() / (len(is_found) + 5)) for is_found in found)  # a few hits among a few say little


def corpus_sketches(corpus: Corpus) -> list[SliceSketch]:
    """Return the sketch of every slice of a corpus: as it was built, else made from the truth (about 100,000 cells a second)."""
    return [_sketch(corpus, slice_id) for slice_id in corpus.slice_ids]


def _sketch(corpus: Corpus, slice_id: str) -> SliceSketch:
    if (path := sketch_path(corpus.folder, slice_id)).is_file():
        return read_sketch(path)
    truth = corpus.truth(slice_id)
    return sketch_slice(slice_id, truth.counts, truth.human_ids)
