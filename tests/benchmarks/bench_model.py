"""The published function in our transformer against its plain formula: same weights, same input, same machine, in turns.

Question: how many times faster is it, forward and in a training step (masked cells and distances, every gradient), in which share of
the memory; and how do time and memory of our own scheme grow up to 10,000 cells in one sub-slice?

    make bench      runs it fully and writes results/model_cpu_<date>.md
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from published_model import NOT_A_TARGET, our_input, our_losses, our_model, our_name, published_losses, published_model, random_weights
from report import ratio, take_turns, timing_rows, write_report
from torch import Tensor

from corpus.published_scheme import NO_DISTANCE, published_distances
from stofm.batch import SubSliceBatch, collate
from stofm.distance_bias import TABLE_ERROR
from stofm.fields import CELL_EMBEDDINGS, COORDS_UM, VIRTUAL_COORDS_UM, VIRTUAL_EMBEDDINGS
from stofm.se2_transformer import SE2Transformer, SE2TransformerConfig

PLAIN, OURS, TABLE, CONCATENATED = "plain formula", "ours", "ours, bias from a table", "ours, concatenated queries and keys"
FORWARD, TRAINING = "forward", "training step"
AT_LEAST = {FORWARD: 20.0, TRAINING: 9.0}
MOST_MEMORY = {FORWARD: 1 / 8, TRAINING: 1 / 4}
IN_BOTH_WAYS = tuple((what, way) for what in (FORWARD, TRAINING) for way in (PLAIN, OURS))
MOST_DIFFERENCE = {FORWARD: {OURS: 2e-5, TABLE: TABLE_ERROR, CONCATENATED: 2e-5}, TRAINING: {OURS: 1e-4, CONCATENATED: 1e-4}}
MOST_GB, MOST_GROWTH = 8.0, 2.1  # of the largest sub-slice; exponent of time over its second half, with room for noise


@dataclass(frozen=True)
class Size:
    """How much work one run is."""

    n_cells: int
    n_virtual: int
    batches: tuple[int, ...]
    n_forward: tuple[int, ...]  # rounds of each batch
    n_training: tuple[int, ...]
    n_large: tuple[int, ...]
    alone: tuple[tuple[str, str], ...]  # what is run in a process of its own for its memory


LARGE = (2_500, 5_000, 10_000, 20_000)
FULLY = Size(n_cells=1000, n_virtual=49, batches=(1, 4), n_forward=(5, 2), n_training=(2, 1), n_large=LARGE, alone=IN_BOTH_WAYS)  # 5 minutes
TINY = Size(n_cells=30, n_virtual=3, batches=(1, 2), n_forward=(1, 1), n_training=(1, 1), n_large=(60,), alone=())
OF_LARGE_MEMORY = 10_000  # cells for which MOST_GB is asked


@dataclass(frozen=True, eq=False)
class Published:
    """Sub-slices as the published code hands them to its model: as they are, and masked, with the targets of both losses."""

    token_embeddings: Tensor
    distances: Tensor
    token_types: Tensor
    masked_embeddings: Tensor
    masked_distances: Tensor
    labels: Tensor
    pair_labels: Tensor

    @property
    def seen(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.token_embeddings, self.distances, self.token_types

    @property
    def masked(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.masked_embeddings, self.masked_distances, self.token_types, self.labels, self.pair_labels

    def split(self) -> list[Published]:
        """Every sub-slice alone."""
        return [Published(*(getattr(self, field.name)[b : b + 1] for field in fields(self))) for b in range(len(self.labels))]


def published_sub_slices(n_cells: int, n_virtual: int, n_sub_slices: int) -> Published:
    """Made-up sub-slices; 15 % of the cells are to be predicted, 15 % are moved and have dense rows, as published."""
    made = [published_sub_slice(np.random.default_rng(seed), n_cells, n_virtual) for seed in range(n_sub_slices)]
    return Published(*(torch.from_numpy(np.stack(arrays)) for arrays in zip(*made, strict=True)))


def published_sub_slice(rng: np.random.Generator, n_cells: int, n_virtual: int) -> tuple[np.ndarray, ...]:
    places, virtual = rng.uniform(-12, 12, (n_cells, 2)), rng.uniform(-30, 30, (n_virtual, 2))
    distances = published_distances(places, virtual)
    n, n_special = len(distances), 1 + n_virtual
    embeddings = rng.normal(size=(n, 256)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    embeddings[0] = 0
    types = np.repeat([1, 2, 0], [1, n_virtual, n_cells])
    hidden, moved = (n_special + rng.permutation(n_cells)[: round(0.15 * n_cells)] for _ in range(2))
    labels, masked_embeddings = np.full_like(embeddings, NOT_A_TARGET), embeddings.copy()
    labels[hidden], masked_embeddings[hidden[: round(0.12 * n_cells)]] = embeddings[hidden], NOT_A_TARGET
    tokens = np.concatenate([np.zeros((1, 2)), virtual, places])
    tokens[moved] += rng.normal(0, 5 * 24 / n_cells**0.5, (len(moved), 2))
    dense = np.linalg.norm(tokens[:, None] - tokens, axis=2).astype(np.float32)
    is_moved, is_cell = np.isin(np.arange(n), moved), types == 0
    of_moved = is_moved[:, None] | is_moved
    masked_distances = np.where(of_moved, np.minimum(dense, dense.T), distances)
    masked_distances[0] = masked_distances[:, 0] = 0
    np.fill_diagonal(masked_distances, 0)
    is_target = of_moved & is_cell[:, None] & is_cell & (distances != NO_DISTANCE) & ~np.eye(n, dtype=bool)
    return embeddings, distances, types, masked_embeddings, masked_distances, labels, np.where(is_target, distances, np.float32(NOT_A_TARGET))


def ways_of(what: str, data: Published, *, device: str = "cpu", precision: torch.dtype = torch.float32) -> dict[str, Callable[[], object]]:
    """What is compared, by name; each holds its weights and returns its outputs, or its gradients."""
    weights = {name: value.detach().to(device).requires_grad_() for name, value in random_weights(0).items()}
    parts = [Published(*(getattr(one, field.name).to(device) for field in fields(one))) for one in (data, *data.split())]
    data, parts = parts[0], parts[1:]
    in_precision = torch.autocast(device, precision, enabled=precision != torch.float32)

    def ours(form: str | None, tolerance: float | None = None) -> Callable[[], object]:
        model = our_model(weights).to(device)
        model.transformer.form = form
        if tolerance:
            model.transformer.pair_bias.tabulate(tolerance)

        def forward() -> Tensor:
            with torch.no_grad(), in_precision:
                return model.transformer(*our_input(*data.seen)).cell_repr

        def training() -> dict[str, Tensor]:
            model.zero_grad()
            with in_precision:
                loss = sum(our_losses(model, *data.masked))
            loss.backward()
            return {name: parameter.grad for name, parameter in model.named_parameters()}

        return forward if what == FORWARD else training

    def plain_forward() -> Tensor:
        with torch.no_grad(), in_precision:
            return published_model(weights, *data.seen)[0]

    def plain_training() -> dict[str, Tensor]:
        for value in weights.values():
            value.grad = None
        for one in parts:  # one after the other, or four would need 18 GB
            with in_precision:
                out = published_model(weights, *one.masked[:3])
                loss = sum(published_losses(weights, *out, *one.masked[3:]))
            loss.backward()
        return {our_name(name): value.grad for name, value in weights.items()}

    if what == TRAINING:
        return {PLAIN: plain_training, OURS: ours(None), CONCATENATED: ours("concatenated")}
    return {PLAIN: plain_forward, OURS: ours(None), TABLE: ours(None, TABLE_ERROR), CONCATENATED: ours("concatenated")}


def difference(what: str, ways: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Largest difference of each way's outputs, or the largest relative one of its gradients, from the plain formula's; of one sub-slice."""
    true, *others = [way() for way in ways.values()]
    if what == FORWARD:
        found = [float((one - true).abs().max()) for one in others]
    else:
        found = [max(float((one[name] - true[name]).norm() / true[name].norm()) for name in true) for one in others]
    return dict(zip(list(ways)[1:], found, strict=True))


def peak_megabytes(size: Size, what: str, way: str) -> float:
    """Memory of one run on one sub-slice beyond weights and input, in a process of its own."""
    return alone("published", what, way, size.n_cells, size.n_virtual)[1]


def large_sub_slice(n_cells: int) -> tuple[SE2Transformer, SubSliceBatch]:
    """Our own scheme and one sub-slice."""
    torch.manual_seed(0)
    return SE2Transformer(SE2TransformerConfig()).eval(), collate([large_record(n_cells)])


def large_record(n_cells: int) -> dict[str, np.ndarray]:
    """A sub-slice of cells 10 um apart, with a virtual cell for every 100 of them, at most 100."""
    rng, n_virtual = np.random.default_rng(0), min(100, n_cells // 100)
    places = [rng.uniform(0, 10 * n_cells**0.5, (n, 2)) for n in (n_cells, n_virtual)]
    embeddings = [rng.normal(size=(n, 256)) / 16 for n in (n_cells, n_virtual)]
    names = (COORDS_UM, VIRTUAL_COORDS_UM, CELL_EMBEDDINGS, VIRTUAL_EMBEDDINGS)
    return dict(zip(names, (*places, *embeddings), strict=True))


def seconds_and_gigabytes(n_cells: int) -> tuple[float, float]:
    """Processor seconds and memory beyond weights and input of the inference on one large sub-slice, in a process of its own."""
    seconds, megabytes = alone("large", n_cells)
    return seconds, megabytes / 1024


def alone(*arguments: object) -> tuple[float, float]:
    """Processor seconds and megabytes that `run_alone` prints in a process of its own."""
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, __file__, *map(str, arguments)], check=True, capture_output=True, text=True, env=paths).stdout
    seconds, megabytes = map(float, out.split())
    return seconds, megabytes


def resident_megabytes(which: str) -> float:
    """`VmRSS`, memory now, or `VmHWM`, the most so far."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which)]
    return int(line.split()[1]) / 1024


def run_alone(kind: str, *arguments: str) -> None:
    """Run one thing in this process, and print the processor seconds and megabytes that it took."""
    torch.set_num_threads(1)
    if kind == "large":
        model, batch = large_sub_slice(int(arguments[0]))
        run = torch.no_grad()(lambda: model(batch))
    else:
        what, way, n_cells, n_virtual = arguments
        run = ways_of(what, published_sub_slices(int(n_cells), int(n_virtual), 1))[way]
    before, start = resident_megabytes("VmRSS"), time.process_time()
    run()
    print(time.process_time() - start, resident_megabytes("VmHWM") - before)


@dataclass(frozen=True, eq=False)
class Measured:
    """All that one run finds."""

    seconds: dict[tuple[str, int], dict[str, list[float]]]
    differences: dict[str, dict[str, float]]
    megabytes: dict[tuple[str, str], float]
    large: dict[int, tuple[float, float]]


def measure(size: Size) -> Measured:
    seconds, differences, threads = {}, {}, torch.get_num_threads()
    torch.set_num_threads(1)
    for what, n_rounds_each in ((FORWARD, size.n_forward), (TRAINING, size.n_training)):
        for n_sub_slices, n_rounds in zip(size.batches, n_rounds_each, strict=True):
            ways = ways_of(what, published_sub_slices(size.n_cells, size.n_virtual, n_sub_slices))
            if n_sub_slices == 1:
                differences[what] = difference(what, ways)
            seconds[what, n_sub_slices] = take_turns(ways, n_rounds)
    torch.set_num_threads(threads)
    megabytes = {(what, way): peak_megabytes(size, what, way) for what, way in size.alone}
    return Measured(seconds, differences, megabytes, {n: seconds_and_gigabytes(n) for n in size.n_large})


def growth(large: Mapping[int, tuple[float, float]]) -> float:
    """Exponent of time over the last doubling of the number of cells."""
    (fewer, (less, _)), (more, (longer, _)) = list(large.items())[-2:]
    return float(np.log(longer / less) / np.log(more / fewer))


def equal_enough(found: Measured) -> bool:
    return all(one[way] <= most for what, of_way in MOST_DIFFERENCE.items() for way, most in of_way.items() if (one := found.differences[what]))


def test_bench_runs_tiny() -> None:
    found = measure(TINY)
    assert all(len(rounds) == 1 for of_way in found.seconds.values() for rounds in of_way.values())
    assert equal_enough(found)
    assert min(gigabytes for _, gigabytes in found.large.values()) > 0


@pytest.mark.slow
def test_the_model_is_many_times_faster_in_a_fraction_of_the_memory() -> None:
    found = measure(FULLY)
    n = 1 + FULLY.n_virtual + FULLY.n_cells
    lines = [
        "# The SE(2) transformer against the plain published formula",
        "",
        f"Question: how many times faster, in which share of the memory? N = {n:,} tokens, 4 layers, D 256, 8 heads, K 128, fp32, one thread.",
        "Processor time; ways take turns in one process. The plain formula (`tests/published_model.py`) holds N x N x K Gaussians and hands the pair",
        "state on; its training step takes the sub-slices of a batch one after the other, for four at once would need 18 GB. Ours gets the same",
        "dense distances, and takes the pairs from them within the time. Making the table (once per weights) is not counted.",
    ]
    for (what, n_sub_slices), of_way in found.seconds.items():
        head = ["", f"{what}, batch {n_sub_slices}", "", "| way | processor ms | least to most | ratio |", "|---|---|---|---|"]
        lines += [*head, *timing_rows(of_way, slow=PLAIN)]
    lines += ["", "Differences from the plain formula, batch 1 (outputs: largest; gradients: largest relative one of all parameters)", ""]
    lines += [f"- {what}: " + ", ".join(f"{way} {value:.1e}" for way, value in of_way.items()) for what, of_way in found.differences.items()]
    lines += [
        "",
        "Peak memory beyond weights and input, batch 1, each in a process of its own",
        "",
        "| | plain formula, MB | ours, MB | ratio |",
        "|---|---|---|---|",
    ]
    memory = {what: (found.megabytes[what, PLAIN], found.megabytes[what, OURS]) for what in (FORWARD, TRAINING)}
    lines += [f"| {what} | {plain:,.0f} | {ours:,.0f} | {plain / ours:.0f} |" for what, (plain, ours) in memory.items()]
    lines += ["", "Inference of our own scheme on one large sub-slice, neighbours included", "", "| cells | processor s | peak GB |", "|---|---|---|"]
    lines += [f"| {n_cells:,} | {seconds:.1f} | {gigabytes:.2f} |" for n_cells, (seconds, gigabytes) in found.large.items()]
    ratios = {key: ratio(of_way, PLAIN, OURS) for key, of_way in found.seconds.items()}
    reading = "; ".join(f"{what}, batch {b}: {times:.1f} times as fast, at least {AT_LEAST[what]:g} asked" for (what, b), times in ratios.items())
    grown = f"time grows with N to the power {growth(found.large):.2f} at the end, at most 2 asked"
    write_report("model", [*lines, "", f"Reading: {reading}; {grown}."], work=FULLY, packages=("numpy", "scipy", "torch"))
    assert all(times >= AT_LEAST[what] for (what, _), times in ratios.items()), ratios
    assert all(ours <= MOST_MEMORY[what] * plain for what, (plain, ours) in memory.items()), memory
    assert equal_enough(found), found.differences
    assert found.large[OF_LARGE_MEMORY][1] <= MOST_GB, found.large
    assert growth(found.large) <= MOST_GROWTH, found.large


if __name__ == "__main__":
    run_alone(*sys.argv[1:])
