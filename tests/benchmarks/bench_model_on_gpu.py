"""The published function in our transformer against its plain formula, and the forms of the pair state against each other, all on a GPU.

Question: how many times faster, how near to what the GPU can do, and how near to the formula in 64 bits?

    make bench      where there is a GPU, runs it and writes results/model_gpu_<date>.md
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
from bench_model import CONCATENATED, FORWARD, FULLY, OURS, PLAIN, TRAINING, Size, large_record, large_sub_slice, published_sub_slices, ways_of
from published_model import published_model, random_weights
from report import ratio, take_turns, timing_rows, write_report
from torch import Tensor

from stofm.batch import SubSliceBatch, collate
from stofm.distance_bias import TABLE_ERROR
from stofm.pair_state import Form
from stofm.se2_transformer import SE2Transformer

ROUNDS = 5
FORMS: tuple[Form, ...] = ("concatenated", "fused")
LARGE = (5_000, 10_000)
MOST_DIFFERENCE = {torch.float32: 2e-5, torch.bfloat16: 0.1}  # of an output from that in 64 bits


def measure(size: Size) -> tuple[dict[str, dict[str, list[float]]], list[str]]:
    """Both ways on a GPU, in both precisions: seconds by what was done, and tables of them with cells per second."""
    data, found, lines = published_sub_slices(size.n_cells, size.n_virtual, size.batches[-1]), {}, []
    n = data.distances.shape[-1]
    for precision in MOST_DIFFERENCE:
        square = torch.randn(8192, 8192, device="cuda", dtype=precision)
        fastest = 2 * 8192**3 / np.median(wall({"": lambda square=square: square @ square}, 10)[""])
        for what in (FORWARD, TRAINING):
            ways = ways_of(what, data, device="cuda", precision=precision)
            del ways[OURS]  # on a GPU the same as `CONCATENATED`
            found[f"{what}, {precision}"] = seconds = wall(ways, ROUNDS)
            work = arithmetic(n, what) * size.batches[-1]
            lines += table(f"{what}, {precision}", seconds, PLAIN, size.n_cells * size.batches[-1], work / fastest)
        batch, forms = own_scheme(size.n_cells, precision)
        tokens = (~batch.is_padding).sum(dim=1).tolist()
        title = f"Our own scheme, sub-slices of {', '.join(map(str, tokens))} tokens, pairs found within the time, forward, {precision}"
        work = sum(arithmetic(n, FORWARD) for n in tokens)
        lines += table(title, wall(forms, ROUNDS), "concatenated", int(batch.is_cell.sum()), work / fastest)
    return found, lines


def of_large_sub_slice(n_cells: int, precision: torch.dtype) -> list[str]:
    """Time and memory of our own scheme on one large sub-slice, by the form of the pair state."""
    model, batch = large_sub_slice(n_cells)
    forms, rows = in_forms(model.cuda(), batch.to("cuda"), precision), []
    model.pair_bias.tabulate()
    for form, seconds in wall(forms, 3).items():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        forms[form]()
        gigabytes = (torch.cuda.max_memory_allocated() - before) / 1e9
        rows.append(f"| {n_cells:,} | {precision} | {form} | {np.median(seconds) * 1e3:,.1f} | {gigabytes:.2f} |")
    return rows


def wall(ways: Mapping[str, Callable[[], object]], n_rounds: int) -> dict[str, list[float]]:
    """Seconds on the GPU, ways in turns, after two rounds in which kernels are made."""

    def synced(way: Callable[[], object]) -> Callable[[], object]:
        return lambda: (way(), torch.cuda.synchronize())

    done = {name: synced(way) for name, way in ways.items()}
    take_turns(done, 2)
    return take_turns(done, n_rounds, clock=time.perf_counter)


def difference_from_float64(size: Size, precision: torch.dtype) -> dict[str, float]:
    """Largest difference of each way's outputs, forward on a GPU, from those of the plain formula in 64 bits."""
    data = published_sub_slices(size.n_cells, size.n_virtual, 1)
    weights = {name: value.double().cuda() for name, value in random_weights(0).items()}
    with torch.no_grad():
        true = published_model(weights, data.token_embeddings.double().cuda(), data.distances.double().cuda(), data.token_types.cuda())[0]
    ways = ways_of(FORWARD, data, device="cuda", precision=precision)
    del ways[OURS]
    return {name: float((way() - true).abs().max()) for name, way in ways.items()}


def table(title: str, seconds: Mapping[str, Sequence[float]], slow: str, n_cells: int, least_seconds: float) -> list[str]:
    """Times of ways, with cells per second, and `least_seconds`, those of a large matrix product with as many operations, as a share of them."""
    rows = zip(timing_rows(seconds, slow=slow), map(np.median, seconds.values()), strict=True)
    head = ["", title, "", "| way | ms | least to most | ratio | cells/s | share |", "|---|---|---|---|---|---|"]
    return [*head, *(f"{row} {n_cells / median:,.0f} | {least_seconds / median:.3f} |" for row, median in rows)]


def own_scheme(n_cells: int, precision: torch.dtype, device: str = "cuda") -> tuple[SubSliceBatch, dict[Form, Callable[[], Tensor]]]:
    """Sub-slices of several sizes, and the inference of our own scheme on them by the form of the pair state."""
    model, _ = large_sub_slice(n_cells)
    batch = collate([large_record(n) for n in (n_cells, n_cells, n_cells * 3 // 4, n_cells // 2)]).to(device)
    return batch, in_forms(model.to(device), batch, precision)


def in_forms(model: SE2Transformer, batch: SubSliceBatch, precision: torch.dtype) -> dict[Form, Callable[[], Tensor]]:
    """The inference of a batch by both forms that are for GPUs."""

    def in_form(form: Form) -> Callable[[], Tensor]:
        def forward() -> Tensor:
            model.form = form
            with torch.no_grad(), torch.autocast(batch.coords_um.device.type, precision, enabled=precision != torch.float32):
                return model(batch).cell_repr

        return forward

    return {form: in_form(form) for form in FORMS}


def arithmetic(n_tokens: int, what: str) -> float:
    """Operations of layers and attention that the formula asks for, of one sub-slice; a training step takes three times a forward pass."""
    return 4 * (12 * n_tokens * 256**2 + 4 * n_tokens**2 * 256) * (1 if what == FORWARD else 3)


def test_forms_compared_on_a_gpu_compute_the_same() -> None:
    one, other = (way() for way in own_scheme(40, torch.float32, "cpu")[1].values())
    torch.testing.assert_close(one, other, atol=2 * TABLE_ERROR, rtol=0)


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_model_is_many_times_faster_on_a_gpu() -> None:
    differences = {precision: difference_from_float64(FULLY, precision) for precision in MOST_DIFFERENCE}
    seconds, tables = measure(FULLY)
    n = 1 + FULLY.n_virtual + FULLY.n_cells
    lines = [
        "# The SE(2) transformer on a GPU, against the plain published formula on the same GPU",
        "",
        f"Question: how many times faster, and how near to what the GPU can do? {FULLY.batches[-1]} sub-slices of {n:,} tokens, 4 layers, D 256,",
        "8 heads, K 128. Wall time, ways in turns; a share is of the speed of a product of two 8,192 x 8,192 matrices in the same precision.",
        *tables,
        "",
        "Largest difference of an output from the plain formula in 64 bits, on the GPU",
        "",
        "| way | float32 | bfloat16 |",
        "|---|---|---|",
        *(f"| {way} | {value:.1e} | {differences[torch.bfloat16][way]:.1e} |" for way, value in differences[torch.float32].items()),
        "",
        "One large sub-slice of our own scheme, forward, pairs found within the time (from 2,048 tokens on a CPU; fused needs none)",
        "",
        "| cells | precision | form | ms | GB |",
        "|---|---|---|---|---|",
        *(row for n_cells in LARGE for precision in MOST_DIFFERENCE for row in of_large_sub_slice(n_cells, precision)),
    ]
    write_report("model", lines, work=FULLY, packages=("numpy", "torch"), on_gpu=True)
    for precision, most in MOST_DIFFERENCE.items():
        assert max(value for way, value in differences[precision].items() if way != PLAIN) <= most, differences
    assert all(ratio(of_way, PLAIN, CONCATENATED) > 1 for of_way in seconds.values()), seconds
