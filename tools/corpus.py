"""`stofm corpus`: what a corpus holds, whether it is still what was written, and mending it."""

from __future__ import annotations

from corpus.integrity import repair, verify
from corpus.store import TOKENS, Corpus
from stofm.errors import DataError
from tools.console import say, tracking


def run_show(where: str) -> None:
    """Say what a corpus holds: slices, totals, the slices set aside."""
    corpus = Corpus(where)
    manifest, totals = corpus.manifest, corpus.manifest["totals"]
    say(f"corpus {corpus.where}: id {corpus.corpus_id[:12]}, token view {manifest['views'][TOKENS]}")
    for entry in manifest["slices"]:
        source = entry["source"]
        facts = f"{source['species']}, {source['technology']}"
        say(f"  {entry['slice_id']}: {entry['n_cells']} cells in {entry['n_sub_slices']} sub-slices; {facts}; labels: {_listed(entry['labels'])}")
    for record in manifest["quarantined"]:
        say(f"  set aside: {record['slice_id']}: {record['code']}: {record['detail']}")
    for fact in ("technology", "species"):
        for value, sums in totals[f"by_{fact}"].items():
            say(f"{fact} {value}: {sums['slices']} slices, {sums['cells']} cells")
    sums = totals["all"]
    say(f"{sums['slices']} slices, {sums['cells']} cells, {sums['sub_slices']} sub-slices; {len(manifest['quarantined'])} slices set aside")


def run_verify(where: str) -> None:
    """Read every byte of a corpus, here or at a URL; `DataError` if anything is not as it was written."""
    corpus = Corpus(where)
    with tracking(f"{corpus.where}: comparing every file with its hash"):
        damages = list(verify(corpus))
    for damage in damages:
        say(f"damaged: {damage}")
    if damages:
        n_files, copy = len({damage.path for damage in damages}), "" if corpus.where.local is not None else "Copy it to this machine. "
        raise DataError(f"corpus {where}: found damage in {n_files} file{'s' * (n_files > 1)} (named above); expected none. "
                        f"{copy}Run `stofm corpus repair`.")  # fmt: skip
    say(f"corpus {where}: whole, id {corpus.corpus_id[:12]}")


def run_repair(where: str) -> None:
    """Make damaged shards and stores again; `DataError` if something is left that only a build can mend."""
    corpus = Corpus(where)
    with tracking(f"{corpus.folder}: repairing"):
        repaired, left = repair(corpus)
    for damage in repaired:
        say(f"repaired: {damage}")
    for damage in left:
        say(f"left: {damage}")
    if left:
        raise DataError(f"corpus {where}: {len(left)} of {len(left) + len(repaired)} files could not be repaired (named above). "
                        "Remove them and run `stofm build` again.")  # fmt: skip
    say(f"corpus {where}: whole, {len(repaired)} file{'s' * (len(repaired) != 1)} repaired")


def _listed(labels: list[str]) -> str:
    return ", ".join(labels) or "none"
