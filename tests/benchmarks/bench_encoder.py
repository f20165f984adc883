"""Cell embeddings of cells from many panels, against batches of 32 in the order of the file, padded to the longest.

Question: how many times less processor time do batches of cells of one length take, and are the embeddings the same?

    make bench      runs it fully and writes results/encoder_cpu_<date>.md
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from report import ratio, take_turns, timing_rows, write_report

from stofm.cell_encoder import TOKENS_PER_BATCH, CellEncoder, CellEncoderConfig, embed_cells
from stofm.gene_tokens import GeneTokens

FILE_ORDER, BY_LENGTH = "batches of 32 in file order", "embed_cells"
CLS, CELLS_PER_BATCH = 25_426, 32  # the vocabulary and the batches of the published way
AT_LEAST, MOST_DIFFERENT = 3.0, 1e-5
PUBLISHED_SIZE = CellEncoderConfig()  # 6 layers, 256 wide: the order of magnitude of the published encoder
SMALL = CellEncoderConfig(n_layers=1, width=64, n_heads=1, ffn_dim=128)


@dataclass(frozen=True)
class Size:
    """How much work one run is: cells are embedded in equal parts, the ways taking turns over each."""

    n_cells: int
    n_parts: int
    encoder: CellEncoderConfig = field(repr=False)

    def __str__(self) -> str:
        return f"{self.n_cells:,} cells, {self.encoder.n_layers} layers, {self.encoder.width} wide"


FULLY = (Size(10_000, 5, SMALL), Size(128, 2, PUBLISHED_SIZE))
TINY = Size(80, 2, CellEncoderConfig(n_layers=1, width=16, n_heads=2, ffn_dim=16))


def cells_of_many_panels(n_cells: int, *, longest: int = 2_048) -> GeneTokens:
    """Cells of 50 to `longest` genes, as many between 50 and 100 as between 1,000 and 2,000, in any order."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(np.log(50), np.log(longest + 1), n_cells)).astype(np.int64)
    return GeneTokens.of_lengths(rng.integers(2, CLS, lengths.sum()).astype(np.uint16), lengths)


@torch.inference_mode()
def embed_in_file_order(encoder: CellEncoder, tokens: GeneTokens) -> np.ndarray:
    n_cells = len(tokens.lengths)
    batches = [np.arange(start, min(start + CELLS_PER_BATCH, n_cells)) for start in range(0, n_cells, CELLS_PER_BATCH)]
    return np.concatenate([encoder(torch.from_numpy(tokens.padded(cells, cls_token=CLS))).numpy() for cells in batches])


def measure(size: Size, *, longest: int = 2_048) -> tuple[dict[str, list[float]], float]:
    """Processor seconds of both ways for each part of the cells, and the largest difference between their embeddings."""
    torch.manual_seed(0)
    encoder = CellEncoder.from_scratch(size.encoder, n_tokens=CLS + 1, max_tokens=longest).eval()
    tokens = cells_of_many_panels(size.n_cells, longest=longest)
    seconds: dict[str, list[float]] = {FILE_ORDER: [], BY_LENGTH: []}
    largest = 0.0
    for cells in np.array_split(np.arange(size.n_cells), size.n_parts):
        part, found = tokens.take(cells), {}

        def in_file_order(part=part, found=found):
            found[FILE_ORDER] = embed_in_file_order(encoder, part)

        def by_length(part=part, found=found):
            found[BY_LENGTH] = embed_cells(encoder, part, cls_token=CLS)

        for way, of_part in take_turns({FILE_ORDER: in_file_order, BY_LENGTH: by_length}, 1).items():
            seconds[way] += of_part
        largest = max(largest, float(np.abs(found[FILE_ORDER] - found[BY_LENGTH]).max()))
    return seconds, largest


def test_bench_runs_tiny() -> None:
    seconds, largest = measure(TINY, longest=100)
    assert [len(rounds) for rounds in seconds.values()] == [2, 2]
    assert largest <= MOST_DIFFERENT


@pytest.mark.slow
def test_cells_of_many_panels_are_embedded_several_times_as_fast() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {str(size): measure(size) for size in FULLY}
    torch.set_num_threads(threads)
    lines = [
        "# Cell encoder on cells of many panels",
        "",
        "Question: how many times less processor time do batches of cells of one length take than 32 cells in file order, padded to the longest?",
        f"Cells of 50 to 2,048 genes, log-uniform, in random order; random weights; one thread; at most {TOKENS_PER_BATCH['cpu']:,} tokens a batch. "
        "Cells are embedded part by part, both ways in turns; milliseconds of one part. A small encoder reads all cells, one of the published order "
        "of magnitude some of them; the fewer cells, the fewer are of one length.",
    ]
    for what, (seconds, largest) in found.items():
        lines += ["", what, "", "| way | processor ms | least to most | ratio |", "|---|---|---|---|", *timing_rows(seconds, slow=FILE_ORDER)]
        lines += ["", f"Largest difference between the embeddings: {largest:.1e}."]
    ratios = {what: ratio(seconds, FILE_ORDER, BY_LENGTH) for what, (seconds, _) in found.items()}
    reading = "; ".join(f"{what}: {times:.1f} times, at least {AT_LEAST:g} asked" for what, times in ratios.items())
    write_report("encoder", [*lines, "", f"Reading: {reading}."], work=FULLY, packages=("numpy", "torch", "transformers"))
    assert min(ratios.values()) >= AT_LEAST, ratios
    assert max(largest for _, largest in found.values()) <= MOST_DIFFERENT
