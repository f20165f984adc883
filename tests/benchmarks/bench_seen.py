"""Whether a copy is found, whatever was done to it; whether anything else is taken for one; and how long it takes.

Question: of copies of real slices (cropped, subsampled, with fewer genes), how many does `stofm seen` find? Does it take a
sibling section, or the other half of a tissue, for a copy? How long is one question to a corpus of 2,000 slices?

    make bench      runs it fully, on the real slices, and writes results/seen_cpu_<date>.md
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections import Counter
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from planted_copies import COPIES, plant
from scipy.sparse import csr_matrix

from corpus.copies import Answer, compare, find_copies
from corpus.gene_ids import load_gene_tables
from corpus.readers import read_slice
from corpus.sketch import SliceSketch, read_sketch, sketch_slice, write_sketch
from corpus.slice import SliceSpec
from corpus.truth import SliceTruth, truth_of
from stofm.durable import write_text

Truths = dict[str, SliceTruth]
SIBLINGS = [("dlpfc_151673", "dlpfc_151674"), ("merfish_mpoa_bp021", "merfish_mpoa_bp026"), ("starmap_mpfc_BZ5", "starmap_mpfc_BZ9"),
            ("xenium_breast_rep1_pikachu", "xenium_breast_rep1_squirtle")]  # fmt: skip
ONE_SECTION = {"xenium_breast_pair", "xenium_breast_rep1_squirtle"}  # crops of one Xenium section that overlap
N_SLICES, N_ROUNDS, N_DECOY_CELLS = 2000, 3, 500
ASKED = ["osmfish_ssctx", "xenium_breast_pair", "dlpfc_151673"]


def sketches_of(truths: Truths) -> list[SliceSketch]:
    return [sketch_slice(name, truth.counts, truth.human_ids) for name, truth in truths.items()]


def part(truth: SliceTruth, rows: np.ndarray) -> SliceTruth:
    return replace(truth, counts=csr_matrix(truth.counts[rows]), coords_um=truth.coords_um[rows])


def ask_about_copies(truths: Truths) -> dict[str, dict[str, Answer]]:
    """Answers to every kind of copy of every slice, all slices in the corpus."""
    sketches = sketches_of(truths)
    return {kind: {name: find_copies(*plant(truth, kind), sketches, truths.__getitem__) for name, truth in truths.items()} for kind in COPIES}


def ask_about_absent(truths: Truths) -> dict[str, Answer]:
    """Answers to every slice while it is left out of the corpus."""
    sketches = sketches_of(truths)
    return {name: find_copies(truth.counts, truth.human_ids, [one for one in sketches if one.slice_id != name], truths.__getitem__)
            for name, truth in truths.items()}  # fmt: skip


def ask_about_halves(truths: Truths) -> dict[str, Answer]:
    """Answers to a random half of the cells of every slice, the corpus holding the other half: the most alike that two slices can be."""
    answers = {}
    for name, truth in truths.items():
        rows = np.random.default_rng(0).permutation(truth.counts.shape[0])
        one, other = part(truth, rows[: len(rows) // 2]), part(truth, rows[len(rows) // 2 :])
        answers[name] = find_copies(one.counts, one.human_ids, sketches_of({name: other}), {name: other}.__getitem__)
    return answers


def decoys(truths: Truths, n: int) -> list[SliceSketch]:
    """Sketches of slices that never were: nine in ten genes of a real slice, with its profile, dealt to its cells anew."""
    sketches, real = [], list(truths.values())
    for number in range(n):
        truth, rng = real[number % len(real)], np.random.default_rng(number)
        genes = np.sort(rng.permutation(len(truth.human_ids))[: int(0.9 * len(truth.human_ids))])
        counts = csr_matrix(truth.counts[rng.permutation(truth.counts.shape[0])[:N_DECOY_CELLS]][:, genes])
        counts.indices = rng.permutation(counts.indices)
        counts.sum_duplicates()
        sketches.append(sketch_slice(f"decoy_{number}", counts, truth.human_ids[genes]))
    return sketches


def times(truths: Truths, folder: Path, n_slices: int, asked: list[str]) -> dict[str, dict[str, list[float]]]:
    """CPU seconds of the parts of a question, round by round, for each slice asked about."""
    sketches = [*sketches_of(truths), *decoys(truths, n_slices - len(truths))]
    for sketch in sketches:
        write_sketch(folder / f"{sketch.slice_id}.safetensors", sketch)
    decoy_truth = next(iter(truths.values()))
    found: dict[str, dict[str, list[float]]] = {name: {"reading sketches": [], "question": [], "all real truths compared": []} for name in asked}
    for _ in range(N_ROUNDS):
        for name, seconds in found.items():
            truth = truths[name]
            start = time.process_time()
            read = [read_sketch(path) for path in sorted(folder.iterdir())]
            seconds["reading sketches"].append(time.process_time() - start)
            start = time.process_time()
            answer = find_copies(truth.counts, truth.human_ids, read, lambda slice_id: truths.get(slice_id, decoy_truth))
            seconds["question"].append(time.process_time() - start)
            assert (answer.verdict, answer.matches[0].slice_id) == ("seen", name)
            start = time.process_time()
            for one in truths.values():
                compare(truth.counts, truth.human_ids, one, correlation=0.0)
            seconds["all real truths compared"].append(time.process_time() - start)
    return found


@pytest.fixture(scope="session")
def simulated(tiny_corpus) -> Truths:
    return {slice_id: tiny_corpus.truth(slice_id) for slice_id in tiny_corpus.slice_ids}


def test_bench_runs_tiny(simulated: Truths, tmp_path: Path) -> None:
    assert {answer.verdict for answers in ask_about_copies(simulated).values() for answer in answers.values()} <= {"seen", "cannot tell"}
    assert {answer.verdict for answer in [*ask_about_absent(simulated).values(), *ask_about_halves(simulated).values()]} == {"not seen"}
    assert set(times(simulated, tmp_path, 6, ["slice_0"])) == {"slice_0"}


@pytest.mark.slow
def test_copies_are_found_and_nothing_else(shared_data: Path, tmp_path: Path) -> None:
    specs = [SliceSpec(path=str(path), um_per_unit=1.0) for path in sorted((shared_data / "data").glob("*.h5ad"))]
    truths = {Path(spec.path).stem: truth_of(read_slice(spec), load_gene_tables())[0] for spec in specs}
    copies, absent, halves = ask_about_copies(truths), ask_about_absent(truths), ask_about_halves(truths)
    write_result(truths, copies, absent, halves, times(truths, tmp_path, N_SLICES, ASKED), tmp_path)
    for kind, answers in copies.items():
        assert {answer.verdict for answer in answers.values()} <= {"seen", "cannot tell"}, kind
        assert all(answer.matches[0].slice_id == name for name, answer in answers.items() if answer.verdict == "seen"), kind
    assert {name for name, answer in absent.items() if answer.verdict != "not seen"} == ONE_SECTION
    assert "seen" not in {answer.verdict for answer in halves.values()}  # some profiles are as alike as those of a slice quantified again


def write_result(truths: Truths, copies, absent, halves, seconds, folder: Path) -> None:
    """Keep a run as ``results/seen_cpu_<date>.md``: question, command, versions, machine, figures."""
    lines = [
        "# Is a copy of a slice found?",
        "",
        f"Question: of copies of {len(truths)} real slices (10 technologies, human and mouse, 32 to 17,651 genes), how many does `stofm seen` find,",
        "does it take anything else for a copy, and how long does it take?",
        "",
        "Every slice is in the corpus; each is asked about as a copy. Containment: share of the copy's gene sets that its original has.",
        "",
        "| copy | seen | cannot tell | missed | lowest containment | cannot tell of |",
        "|---|---|---|---|---|---|",
    ]
    for kind, answers in copies.items():
        n = Counter(answer.verdict for answer in answers.values())
        untold = ", ".join(name for name, answer in answers.items() if answer.verdict == "cannot tell")
        lowest = min(answer.matches[0].containment for answer in answers.values() if answer.verdict == "seen")
        lines.append(f"| {kind} | {n['seen']} | {n['cannot tell']} | {n['similar'] + n['not seen']} | {lowest:.3f} | {untold} |")
    lines += [
        "",
        "What is no copy; chance is the share of sets that the verdict allows for.",
        "",
        "| asked about | corpus | verdict | containment | sets in common | chance | profiles correlate |",
        "|---|---|---|---|---|---|---|",
    ]
    for one, other in SIBLINGS:
        match = compare(truths[one].counts, truths[one].human_ids, truths[other], correlation=_correlation(absent[one], other))
        lines.append(_line(one, other, match))
    first, second = sorted(ONE_SECTION)
    lines.append(_line(first, second, absent[first].matches[0]))
    verdicts = Counter(answer.verdict for name, answer in absent.items() if name not in ONE_SECTION)
    highest = max(match.containment for answer in halves.values() for match in answer.matches if match.slice_id != "osmfish_ssctx")
    osmfish = halves["osmfish_ssctx"].matches[0]
    lines += [
        "",
        f"Each slice asked about while it is left out, but for these two crops of one section: {dict(verdicts)}.",
        f"Half of the cells of a slice asked of the other half, {len(halves)} slices: {dict(Counter(answer.verdict for answer in halves.values()))}",
        f"(similar by profile alone); containment at most {highest:.4f}, but {osmfish.containment:.3f} for osmFISH (chance {osmfish.chance:.3f}).",
        "",
        f"One question to a corpus of {N_SLICES} slices: the real ones and decoys with their profiles, each with its own genes,",
        f"of at most {N_DECOY_CELLS} cells. CPU seconds, median (lowest to highest) of {N_ROUNDS} rounds. Beside it the comparison with the truths",
        f"of the {len(truths)} real slices alone, held in memory.",
        "",
        "| asked about | reading sketches | question | all real truths compared |",
        "|---|---|---|---|",
    ]
    for name, of_part in seconds.items():
        lines.append(f"| {name} | " + " | ".join(f"{np.median(s):.2f} ({min(s):.2f} to {max(s):.2f})" for s in of_part.values()) + " |")
    sizes = [path.stat().st_size / 1e3 for path in folder.iterdir()]
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "xxhash", "safetensors"))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform(terse=True)}, Python {platform.python_version()}"
    lines += [
        "",
        f"Size of a sketch: median {np.median(sizes):.0f} kB, largest {max(sizes):.0f} kB.",
        "",
        "Reading: a copy shares all its sets with its original whatever was cut away; what shares no cell shares next to none, unless a handful of",
        "genes is left, and then the verdict is that it cannot be told.",
        "",
        f"Command: `make bench`. Commit: {commit}. Versions: {versions}. Machine: {machine}.",
    ]
    write_text(Path("results") / f"seen_cpu_{date.today().isoformat()}.md", "\n".join(lines) + "\n")


def _line(one: str, other: str, match) -> str:
    return f"| {one} | {other} | {match.verdict} | {match.containment:.4f} | {match.n_shared} | {match.chance:.3f} | {match.correlation:.4f} |"


def _correlation(answer: Answer, name: str) -> float:
    return next((match.correlation for match in answer.matches if match.slice_id == name), float("nan"))
