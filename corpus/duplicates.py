"""Duplicates in a corpus: the same file, the same content, the same cells under another name; and pairs that a person should look at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.sparse import csr_matrix, triu
from scipy.sparse.csgraph import connected_components

from corpus.overlap import judge, looks_requantified, overlap_of_sketches, profile_correlations
from corpus.sketch import SliceSketch
from stofm.durable import replacing
from stofm.errors import DataError

DuplicatePolicy = Literal["drop", "keep", "refuse"]

REVIEW = "review: "
MIN_CORRELATION = 0.9  # of the profiles of a slice and its copy on fewer genes


@dataclass(frozen=True)
class SliceFacts:
    """What is asked of a slice beside its sketch.

    Attributes
    ----------
    source_id : str
        Names the bytes and the part of them that the slice was read from; equal for two readings of one file.
    content_id : str
        Names the counts and places that the corpus keeps.
    is_raw : bool
        Counts as measured, not recovered from normalised values.
    """

    slice_id: str
    source_id: str
    content_id: str
    is_raw: bool = True


@dataclass(frozen=True)
class DuplicateRow:
    """A line of ``dedup.parquet``.

    Attributes
    ----------
    group : int
        Slices of a group belong to one split.
    kept : bool
        False for a copy that the corpus leaves out.
    reason : str
        "same file", "same content", "same cells", "same cells, fewer genes", or "review: ..." where a person should look;
        "kept" for the slice that the others of its group speak of.
    copy_of : str
        The slice that the reason speaks of; "" if kept.
    score : float
        Share of its sets in `copy_of`, or correlation of log-profiles.
    """

    group: int
    slice_id: str
    kept: bool
    reason: str
    copy_of: str
    score: float


@dataclass(frozen=True)
class _Link:
    """A slice, by number, as copy of another, or a pair to look at."""

    copy: int
    of: int
    reason: str
    score: float

    @property
    def is_review(self) -> bool:
        return self.reason.startswith(REVIEW)


def find_duplicates(facts: Sequence[SliceFacts], sketches: Sequence[SliceSketch], *, policy: DuplicatePolicy = "drop") -> list[DuplicateRow]:
    """Group the slices of a corpus that hold the same cells; the order of the slices does not matter.

    A slice is dropped only if another one that is kept holds at least 0.9 of its cells: of two equal ones the copy with raw
    counts stays, then the one with more cells, then more genes. What merely overlaps or looks alike stays, for a person to review.

    Parameters
    ----------
    facts, sketches : per slice, in the same order
    policy
        "keep" drops nothing, "refuse" raises.

    Returns
    -------
    list of DuplicateRow
        Slices that are in no group have no row.

    Raises
    ------
    DataError
        If `policy` is "refuse" and a slice would be dropped.
    """
    order = sorted(range(len(facts)), key=lambda i: (not facts[i].is_raw, -sketches[i].n_cells, -len(sketches[i].genes), facts[i].slice_id))
    facts, sketches = [facts[i] for i in order], [sketches[i] for i in order]  # from here on, the better copy first
    links = [*_equal(facts), *_same_cells(sketches), *_alike_profiles(sketches)]
    links_of: dict[int, list[_Link]] = defaultdict(list)
    for link in links:
        links_of[link.copy].append(link)
    dropped = _dropped(links_of)
    if dropped and policy == "refuse":
        first = dropped[min(dropped)]
        raise DataError(
            f"slice {facts[first.copy].slice_id!r}: {first.reason} as slice {facts[first.of].slice_id!r} ({len(dropped)} such slices); "
            "expected every slice once. Remove the copies, or set `duplicates: drop`."
        )
    names = [one.slice_id for one in facts]
    rows = []
    for number, group in enumerate(_groups(links, names)):
        for member in group:
            is_kept = policy == "keep" or member not in dropped
            found = dropped.get(member) or next((link for link in links_of[member] if link.of not in dropped), None)
            if found is None:
                rows.append(DuplicateRow(number, names[member], is_kept, "kept", "", 1.0))
            else:
                reason = found.reason if found.is_review or member in dropped else REVIEW + found.reason
                rows.append(DuplicateRow(number, names[member], is_kept, reason, names[found.of], round(found.score, 6)))
    return rows


def write_duplicates(path: Path, rows: Sequence[DuplicateRow]) -> None:
    """Write ``dedup.parquet``, whole or not at all."""
    import pandas as pd

    with replacing(path) as aside:
        pd.DataFrame([asdict(row) for row in rows], columns=[field.name for field in fields(DuplicateRow)]).to_parquet(aside, index=False)


def _equal(facts: Sequence[SliceFacts]) -> Iterator[_Link]:
    """Link every slice to the best one of equal source or equal content."""
    for reason, names in (("same file", [one.source_id for one in facts]), ("same content", [one.content_id for one in facts])):
        best: dict[str, int] = {}
        for number, name in enumerate(names):
            if best.setdefault(name, number) != number:
                yield _Link(number, best[name], reason, 1.0)


def _same_cells(sketches: Sequence[SliceSketch]) -> Iterator[_Link]:
    """Link slices that share gene sets, in both directions where both hold the other's cells."""
    hashes, column = np.unique(np.concatenate([one.hashes for one in sketches]), return_inverse=True)
    has = csr_matrix((np.ones(len(column)), column, np.cumsum([0, *(len(one.hashes) for one in sketches)])), (len(sketches), len(hashes)))
    for first, second in zip(*triu(has @ has.T, k=1).nonzero(), strict=True):
        found = overlap_of_sketches(sketches[first], sketches[second])
        for copy, of, n_sets, share in ((second, first, found.n_second, found.of_second), (first, second, found.n_first, found.of_first)):
            finding = judge(found.n_shared, n_sets, sketches[of].twin_share)
            if finding == "copy":
                yield _Link(int(copy), int(of), "same cells", share)
            elif finding == "overlap":
                yield _Link(int(copy), int(of), REVIEW + "some of the same cells", share)


def _alike_profiles(sketches: Sequence[SliceSketch]) -> Iterator[_Link]:
    """Link slices whose profiles are nearly equal: copies on fewer genes, found by probes; and pairs of one panel, to be looked at."""
    correlations, n_shared = profile_correlations(sketches, sketches)
    for first, second in zip(*(place.tolist() for place in np.nonzero(np.triu(correlations >= MIN_CORRELATION, k=1))), strict=True):
        a, b, n_both, correlation = sketches[first], sketches[second], int(n_shared[first, second]), float(correlations[first, second])
        if looks_requantified((len(a.genes), len(b.genes)), n_both, (a.n_cells, b.n_cells), correlation):
            yield _Link(second, first, REVIEW + "alike profile", correlation)
        for few, many in ((second, first), (first, second)):
            if n_both == len(sketches[few].genes) < len(sketches[many].genes):
                yield from _fewer_genes(sketches, few, many)


def _fewer_genes(sketches: Sequence[SliceSketch], few: int, many: int) -> Iterator[_Link]:
    """Link a slice to one that measured all its genes and more, if the other's probes are found in it."""
    copy, of = sketches[few], sketches[many]
    probes = np.unique(of.probe_sets(np.isin(of.genes, copy.genes)))
    probes = probes[probes <= copy.limit]
    n_found = len(np.intersect1d(probes, copy.hashes, assume_unique=True))
    finding = judge(n_found, len(probes), copy.twin_share)
    if finding == "copy":
        yield _Link(few, many, "same cells, fewer genes", n_found / len(probes))
    elif finding == "overlap":
        yield _Link(few, many, REVIEW + "some of the same cells", n_found / len(probes))


def _dropped(links_of: Mapping[int, Sequence[_Link]]) -> dict[int, _Link]:
    """Choose the slices that go, each with the link to a kept slice that holds its cells; better copies come first."""
    dropped: dict[int, _Link] = {}
    for member in sorted(links_of):
        held = (link for link in links_of[member] if link.of < member and link.of not in dropped and not link.is_review)
        if (link := next(held, None)) is not None:
            dropped[member] = link
    return dropped


def _groups(links: Sequence[_Link], names: Sequence[str]) -> list[list[int]]:
    """Return the connected slices, two and more, in the order of their first names."""
    pairs = ([link.copy for link in links], [link.of for link in links])
    _, label = connected_components(csr_matrix((np.ones(len(links)), pairs), (len(names), len(names))), directed=False)
    groups = [np.flatnonzero(label == one).tolist() for one in np.flatnonzero(np.bincount(label) > 1)]
    return sorted(groups, key=lambda group: min(names[member] for member in group))
