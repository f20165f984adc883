"""Counts to embeddings, the whole path, against a plain rewrite of what the published code does; and memory as slices grow.

Questions: how many times less processor time does a slice of one panel take with a model of the released size; and how much more memory does
`stofm embed`, file to file, hold at its peak when a slice has ten times the cells?

    make bench      runs it fully and writes results/embedding_cpu_<date>.md and, where there is a GPU, embedding_gpu_<date>.md
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from published_model import Weights, published_model, random_weights
from report import write_report
from scipy.sparse import csr_matrix, vstack

from corpus.gene_ids import load_gene_tables
from corpus.gene_vocab import GeneVocab
from corpus.published_scheme import extract_published, published_distances
from corpus.scales import ScaleConfig
from corpus.slice import Slice, SliceSpec
from downstream.embedding import Embedder, EmbedOptions, embed_slice
from downstream.memory import BYTES_PER_CELL
from downstream.tables import read_receipt
from stofm.cell_encoder import CellEncoder, CellEncoderConfig
from stofm.checkpoint import Model, save_model
from stofm.fields import EMBEDDING_DIM, N_LEADING_SPECIALS, PAD_TOKEN
from stofm.se2_transformer import SE2Transformer, SE2TransformerConfig
from tools.embed import run_embed

AT_LEAST, MOST_GROWTH = 5.0, 1.2
# As in three Xenium slices of 313 genes: 56 to 67 of them in a cell, with a spread of .33 to .39 of that; the longest of 32 has 1.8 times the mean.
SHARE_SEEN, DEPTH_SPREAD = 0.2, 0.3
CELLS_PER_BATCH, CELLS_PER_SUB_SLICE, N_VIRTUAL = 32, 1000, 32  # of the published way
RELEASED = CellEncoderConfig(n_layers=6, width=256, n_heads=4, ffn_dim=512), SE2TransformerConfig(n_layers=4)
SMALL = CellEncoderConfig(n_layers=1, width=16, n_heads=2, ffn_dim=16), SE2TransformerConfig(n_layers=1, n_heads=2, n_radial=4, n_neighbors=6)

STOFM = """
from report import peak_bytes
from tools.cli import main
try:
    main()
finally:
    print(peak_bytes())
"""


@dataclass(frozen=True)
class Size:
    """How much work one run is; the plain path embeds some of the cells and sub-slices, and its time is that of all in proportion."""

    n_cells: int
    n_genes: int
    n_plain_cells: int
    n_plain_sub_slices: int
    is_small: bool
    n_for_memory: tuple[int, int]


FULLY = Size(50_000, 300, n_plain_cells=2_048, n_plain_sub_slices=3, is_small=False, n_for_memory=(100_000, 1_000_000))
TINY = Size(600, 40, n_plain_cells=64, n_plain_sub_slices=1, is_small=True, n_for_memory=(300, 600))


def vocab_of(n_genes: int) -> GeneVocab:
    ids = np.array([f"ENSG{number:011d}" for number in range(n_genes)])
    return GeneVocab(ids, np.full(n_genes, 2.0), ids)


def count_blocks(n_cells: int, n_genes: int, rng: np.random.Generator) -> Iterator[csr_matrix]:
    """Counts of one panel, 10,000 cells at a time; a cell sees a fifth of the genes, more or less as depths differ in a Xenium slice."""
    for shape in [(min(10_000, n_cells - start), n_genes) for start in range(0, n_cells, 10_000)]:
        is_seen = rng.random(shape, np.float32) < SHARE_SEEN * rng.lognormal(-(DEPTH_SPREAD**2) / 2, DEPTH_SPREAD, (shape[0], 1))
        is_seen[:, 0] |= ~is_seen.any(axis=1)  # no cell is empty
        counts = csr_matrix(is_seen, dtype=np.float32)
        counts.data[:] = rng.geometric(0.5, counts.nnz)
        yield counts


def places_of(n_cells: int, rng: np.random.Generator) -> np.ndarray:
    """Cells 10 um apart."""
    side = math.ceil(n_cells**0.5)
    return np.stack(np.divmod(np.arange(n_cells), side), axis=1) * 10.0 + rng.normal(0, 2.0, (n_cells, 2))


def made_up(n_cells: int, n_genes: int) -> tuple[Slice, GeneVocab]:
    """A slice of one panel, and the vocabulary of its genes."""
    rng, vocab = np.random.default_rng(0), vocab_of(n_genes)
    counts = vstack(list(count_blocks(n_cells, n_genes, rng)), format="csr")
    ids = vocab.gene_ids
    return Slice("made_up", counts, ids, ids, places_of(n_cells, rng), "human", source={"um_per_unit": 1.0}), vocab


def write_made_up(path: Path, n_cells: int, n_genes: int) -> None:
    """Write a slice like that of `made_up` as ``.h5ad``, never all of it in memory."""
    import h5py
    import pandas as pd
    from anndata import AnnData
    from anndata.io import sparse_dataset, write_elem

    rng = np.random.default_rng(0)
    blocks = count_blocks(n_cells, n_genes, rng)
    names = pd.Index([f"cell-{number}" for number in range(n_cells)])
    obs, var = pd.DataFrame(index=names), pd.DataFrame(index=pd.Index(vocab_of(n_genes).gene_ids.astype(object)))
    AnnData(csr_matrix((n_cells, n_genes), dtype=np.float32), obs=obs, var=var, obsm={"spatial": places_of(n_cells, rng)}).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        del file["X"]
        write_elem(file, "X", next(blocks))
        counts = sparse_dataset(file["X"])
        for block in blocks:
            counts.append(block)


def embedder_of(vocab: GeneVocab, encoder: CellEncoderConfig, transformer: SE2TransformerConfig, device: str = "cpu") -> Embedder:
    """A model with random weights."""
    torch.manual_seed(0)
    scales = ScaleConfig()
    cells = CellEncoder.from_scratch(encoder, n_tokens=vocab.n_tokens, max_tokens=scales.rank_value.max_tokens).eval()
    model = Model(Path("random"), cells.to(device), SE2Transformer(transformer).eval().to(device), "0" * 64, cast(Any, None))
    return Embedder(model, vocab, load_gene_tables(), scales)


def plain_tokens(counts: csr_matrix, vocab: GeneVocab) -> list[np.ndarray]:
    """Cell by cell from a dense row: normalise, divide by the medians, sort."""
    tokens = []
    for row in counts.toarray():
        expressed = np.flatnonzero(row)
        value = row[expressed] / row.sum() * 10_000 / vocab.medians[expressed]
        tokens.append(expressed[np.argsort(-value)] + N_LEADING_SPECIALS)
    return tokens


@torch.inference_mode()
def plain_cells(encoder: CellEncoder, counts: csr_matrix, vocab: GeneVocab) -> np.ndarray:
    """Batches of 32 cells in the order of the file, all padded to the longest cell; every layer computes the states of all tokens."""
    tokens = plain_tokens(counts, vocab)
    padded = np.full((len(tokens), 1 + max(map(len, tokens))), PAD_TOKEN, np.int64)
    for row, cell in zip(padded, tokens, strict=True):
        row[0], row[1 : 1 + len(cell)] = vocab.cls_token, cell
    batches = torch.from_numpy(padded).to(next(encoder.parameters()).device).split(CELLS_PER_BATCH)
    return torch.cat([encoder.embed(encoder.hidden(batch)[:, 0]) for batch in batches]).cpu().numpy()


@torch.inference_mode()
def plain_sub_slice(weights: Weights, embeddings: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The graph of one sub-slice and the dense transformer with a Gaussian of every pair."""
    virtual = np.random.default_rng(0).uniform(-30, 30, (N_VIRTUAL, 2))
    device = next(iter(weights.values())).device
    distances = torch.from_numpy(published_distances(places, virtual))[None]
    types = torch.from_numpy(np.repeat([1, 2, 0], [1, N_VIRTUAL, len(places)]))[None]
    tokens = torch.zeros(1, types.shape[1], EMBEDDING_DIM)
    tokens[0, -len(places) :] = torch.from_numpy(embeddings)
    return published_model(weights, tokens.to(device), distances.to(device), types.to(device))[0][0, -len(places) :].cpu().numpy()


def measure_speed(size: Size, device: str = "cpu") -> dict[str, float]:
    """Seconds of both ways, parts and whole: of the processor, or of a clock where it waits for a GPU.

    The plain way is measured before and after ours, for a machine may become slower meanwhile.
    """
    st_slice, vocab = made_up(size.n_cells, size.n_genes)
    embedder = embedder_of(vocab, *(SMALL if size.is_small else RELEASED), device=device)
    weights = {name: value.to(device) for name, value in random_weights(0).items()}
    some = st_slice.counts[: size.n_plain_cells]
    n_sub_slices = max(1, round(size.n_cells / CELLS_PER_SUB_SLICE))
    cells = min(CELLS_PER_SUB_SLICE, size.n_cells)
    clock = time.process_time if device == "cpu" else time.perf_counter
    parts = {"tokens and cell encoder": 0.0, "clusters": 0.0, "graphs and SE(2)": 0.0}

    def add_half_of_plain() -> None:
        start = clock()
        embeddings = plain_cells(embedder.model.cell_encoder, some, vocab)
        parts["tokens and cell encoder"] += (clock() - start) / 2 * size.n_cells / some.shape[0]
        of_all = np.resize(embeddings, (size.n_cells, EMBEDDING_DIM)) + np.random.default_rng(0).normal(0, 0.01, (size.n_cells, EMBEDDING_DIM))
        start = clock()
        extract_published(st_slice.coords_um, of_all.astype(np.float32))
        parts["clusters"] += (clock() - start) / 2
        start = clock()
        for number in range(size.n_plain_sub_slices):
            plain_sub_slice(weights, of_all[:cells], np.random.default_rng(number).uniform(-12, 12, (cells, 2)))
        parts["graphs and SE(2)"] += (clock() - start) / 2 * n_sub_slices / size.n_plain_sub_slices

    add_half_of_plain()
    start = clock()
    found = embed_slice(st_slice, embedder, EmbedOptions())
    ours = clock() - start
    assert found.is_embedded.all()
    add_half_of_plain()
    return {**parts, "plain": sum(parts.values()), "ours": ours}


def write_small_model(folder: Path, n_genes: int) -> None:
    vocab = vocab_of(n_genes)
    embedder = embedder_of(vocab, *SMALL)
    texts = {"gene_vocab.csv": vocab.to_csv(), "gene_tables.json": embedder.tables.to_json(), "scales.json": embedder.scales.model_dump_json()}
    save_model(folder, embedder.model.cell_encoder, embedder.model.se2_transformer, texts=texts, trained_on={})


def measure_memory(n_cells: int, n_genes: int, folder: Path) -> int:
    """Bytes that a process which runs `stofm embed` holds at its peak, all of them, from a file of so many cells to the embedded one."""
    slice_file, out = folder / f"of_{n_cells}.h5ad", folder / "out"
    write_made_up(slice_file, n_cells, n_genes)
    if not (folder / "model").exists():
        write_small_model(folder / "model", n_genes)
    words = ["embed", slice_file, "--model", folder / "model", "--out", out]
    found = subprocess.run([sys.executable, "-c", STOFM, *map(str, words)], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    receipt = read_receipt(out / slice_file.name)
    assert receipt is not None
    assert receipt["n_embedded"] == n_cells
    slice_file.unlink()
    (out / slice_file.name).unlink()
    return int(found.stdout.split()[-1])


def test_bench_runs_tiny() -> None:
    seconds = measure_speed(TINY)
    assert min(seconds.values()) > 0
    st_slice, vocab = made_up(TINY.n_cells, TINY.n_genes)
    encoder = embedder_of(vocab, *SMALL).model.cell_encoder
    assert plain_cells(encoder, st_slice.counts[:40], vocab).shape == (40, EMBEDDING_DIM)


def test_a_made_up_file_is_embedded(tmp_path: Path) -> None:
    write_made_up(tmp_path / "made_up.h5ad", TINY.n_cells, TINY.n_genes)
    write_small_model(tmp_path / "model", TINY.n_genes)
    (path,) = run_embed([SliceSpec(path=str(tmp_path / "made_up.h5ad"))], tmp_path / "model", tmp_path / "out")
    receipt = read_receipt(path)
    assert receipt is not None
    assert receipt["n_embedded"] == TINY.n_cells


@pytest.mark.slow
def test_the_whole_path_is_several_times_as_fast_as_the_plain_one() -> None:
    torch.set_num_threads(1)
    seconds = measure_speed(FULLY)
    ratio = seconds["plain"] / seconds["ours"]
    lines = [
        "# From counts to embeddings",
        "",
        f"Question: {FULLY.n_cells:,} cells of a panel of {FULLY.n_genes} genes, a fifth of them seen in a cell, in depths that differ as in a "
        "Xenium slice; encoder of 6 layers x 256, 4 layers of the SE(2) transformer: how many times the processor time of `embed_slice` does the "
        "plain path take (dense tokeniser, batches of 32 padded to the longest cell, Leiden, a graph per sub-slice, a Gaussian of every pair)? One "
        f"thread, random weights. The plain path reads {FULLY.n_plain_cells:,} cells and "
        f"{FULLY.n_plain_sub_slices} sub-slices, before and after ours, and is extrapolated in proportion. "
        "Ours reads all, context of sub-slices included.",
        "",
        "| | processor seconds |",
        "|---|---|",
        *(f"| {name} | {value:,.1f} |" for name, value in seconds.items()),
        "",
        f"Ratio {ratio:.1f}; at least {AT_LEAST:g} asked.",
    ]
    write_report("embedding", lines, work=FULLY, packages=("numpy", "torch", "transformers", "scikit-learn"))
    assert ratio >= AT_LEAST


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_whole_path_is_several_times_as_fast_as_the_plain_one_on_a_gpu() -> None:
    measure_speed(replace(FULLY, n_cells=3_000, n_plain_cells=64, n_plain_sub_slices=1), "cuda")  # kernels are loaded
    seconds = measure_speed(FULLY, "cuda")
    ratio = seconds["plain"] / seconds["ours"]
    lines = [
        "# From counts to embeddings on a GPU",
        "",
        f"Question: as in `embedding_cpu`, {FULLY.n_cells:,} cells of {FULLY.n_genes} genes, and a model of the released size, but both ways "
        "on the GPU, in float32, with what they do beside it on the processor, by the clock.",
        "",
        "| | seconds |",
        "|---|---|",
        *(f"| {name} | {value:,.2f} |" for name, value in seconds.items()),
        "",
        f"Ratio {ratio:.1f}; {FULLY.n_cells / seconds['ours']:,.0f} cells a second.",
    ]
    write_report("embedding", lines, work=FULLY, packages=("numpy", "torch", "transformers", "scikit-learn"), on_gpu=True)
    assert ratio >= AT_LEAST


@pytest.mark.slow
def test_ten_times_the_cells_take_hardly_more_memory(tmp_path: Path) -> None:
    n_cells, peaks = FULLY.n_for_memory, [measure_memory(n, FULLY.n_genes, tmp_path) for n in FULLY.n_for_memory]
    growth, per_cell = peaks[1] / peaks[0], (peaks[1] - peaks[0]) / (n_cells[1] - n_cells[0])
    lines = [
        "# Memory of `stofm embed`",
        "",
        f"Question: how much more does a process that runs `stofm embed` hold at its peak, all of it, libraries and model included, for a slice of "
        f"{n_cells[1]:,} cells than for one of {n_cells[0]:,}? From a file of counts ({FULLY.n_genes} genes, a fifth of them seen in a cell) to "
        "the embedded file; a small model with random weights, so that its layers take little.",
        "",
        "| cells | peak, MB |",
        "|---|---|",
        *(f"| {n:,} | {peak / 1e6:,.0f} |" for n, peak in zip(n_cells, peaks, strict=True)),
        "",
        f"{growth:.2f} times as much, {per_cell:,.0f} bytes a further cell; at most {MOST_GROWTH:g} times asked.",
    ]
    write_report("embedding_memory", lines, work=FULLY.n_for_memory, packages=("numpy", "torch", "transformers", "scikit-learn", "anndata"))
    assert growth <= MOST_GROWTH
    assert per_cell <= BYTES_PER_CELL, "the budget that `stofm embed` refuses by"
