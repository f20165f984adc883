"""Training: time waited for data, two processes beside one, batches by length beside random ones, memory of the joint stage with and without chunks.

    make bench      runs it fully and writes results/training_cpu_<date>.md and, where there is a GPU, training_gpu_<date>.md

Every question is answered by children of this process (`python bench_training.py WHAT FOLDER`), so that memory is that of one way alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from report import forget_peak, peak_bytes, ratio, take_turns, timing_rows, write_report

from corpus.build import CorpusConfig, build_corpus, embedded_shards
from corpus.scales import ScaleConfig
from corpus.shards import write_view
from corpus.simulate import SimulationConfig, simulate_slice
from corpus.slice import SliceSpec
from corpus.store import Corpus
from corpus.sub_slices import SubSliceConfig
from corpus.view import View
from pretrain.config import EncoderStageConfig, JointStageConfig, PretrainConfig, SE2StageConfig
from pretrain.data import Order
from pretrain.joint import joint_stage
from pretrain.objectives import CellPairBatch, EncoderObjectives, SE2Objectives
from pretrain.run_log import read_run_log
from pretrain.stages import encoder_stage, masked_twice
from stofm.cell_encoder import CellEncoder, CellEncoderConfig, embed_cells
from stofm.fields import N_TOKENS
from stofm.gene_tokens import GeneTokens
from stofm.se2_transformer import SE2Transformer, SE2TransformerConfig

BUCKETED, RANDOM = "cells of a sub-slice, by length", "random batches of 32, padded to the longest"
CHUNKED, WHOLE = "in chunks, computed again", "all cells at once"
MOST_WAIT, MOST_WAIT_ON_GPU, LEAST_TWO, LEAST_BUCKETED, MOST_MEMORY = 0.01, 0.1, 1.7, 3.0, 1 / 3


@dataclass(frozen=True)
class Size:
    """How much work one run is."""

    panels: tuple[int, ...]
    depths: tuple[float, ...]  # molecules of a cell, panel by panel
    n_cells: int  # of a slice
    sub_slice: int
    encoder: CellEncoderConfig
    n_steps: int
    n_rounds: int


# Three cells in four of small panels, one of spots with few hundred genes, as in the real corpus (configs/corpus/real.yaml).
FULLY = Size((60, 100, 200, 2000), (150, 150, 150, 500), 4000, 1000, CellEncoderConfig(n_layers=2, width=128, ffn_dim=256), 20, 3)
ON_GPU = Size((60, 100, 200, 2000), (150, 150, 150, 500), 4_000, 1000, CellEncoderConfig(), 20, 1)  # the encoder of the published size
TINY = Size((20, 60), (150, 150), 200, 100, CellEncoderConfig(n_layers=1, width=16, n_heads=2, ffn_dim=16), 2, 1)


def make_corpus(folder: Path, size: Size) -> Corpus:
    """A slice for every panel, simulated."""
    specs = []
    for number, depth in enumerate(size.depths):
        world = SimulationConfig(n_slices=len(size.panels), n_cells=size.n_cells, panel_sizes=list(size.panels), depth=depth)
        specs.append(SliceSpec(path=str(folder / f"slice_{number}.h5ad")))
        simulate_slice(world, number).write_h5ad(specs[-1].path)
    scales = ScaleConfig(sub_slices=SubSliceConfig(n_cells=size.sub_slice))
    return build_corpus(CorpusConfig(out=str(folder / "corpus"), slices=specs, scales=scales))


def new_encoder(corpus: Corpus, size: Size) -> CellEncoder:
    torch.manual_seed(0)
    return CellEncoder.from_scratch(size.encoder, n_tokens=corpus.vocab.n_tokens, max_tokens=corpus.scales.rank_value.max_tokens)


def train_on(model: EncoderObjectives, batch: CellPairBatch) -> None:
    sum(value / max(1, batch.counts()[name]) for name, value in model(batch).items()).backward()
    model.zero_grad()


def seconds_per_cell(corpus: Corpus, size: Size) -> dict[str, list[float]]:
    """Processor seconds of a training pass over a fixed number of cells, both ways in turns."""
    view, cls = corpus.token_view(), corpus.vocab.cls_token
    stage = encoder_stage(EncoderStageConfig(cells_per_micro_batch=128), new_encoder(corpus, size), view, cls_token=cls, seed=0)
    records = [view.read(number) for number in range(len(view))]
    every = GeneTokens.joined([GeneTokens.of_record(one, with_levels=True) for one in records])
    order, rng, place = Order(stage.n_units, 0), np.random.default_rng(0), iter(range(10**9))
    seconds: dict[str, list[float]] = {BUCKETED: [], RANDOM: []}

    def bucketed() -> None:
        done = 0
        while done < n_cells:
            batch = stage.micro_batch([order[next(place)]])
            train_on(stage.model, batch)
            done += len(batch.tokens) // 2
        counted[BUCKETED] = done

    def random() -> None:
        for _ in range(-(-n_cells // 32)):
            true = every.padded(rng.integers(0, len(every.lengths), 32), cls_token=cls)
            train_on(stage.model, masked_twice(true, cls_token=cls, rate=0.15, rng=rng))
        counted[RANDOM] = -(-n_cells // 32) * 32

    n_cells, counted = min(128 * size.n_steps, len(every.lengths)), {}  # so many that every round has its share of each panel
    for _ in range(size.n_rounds):
        for name, (one,) in take_turns({BUCKETED: bucketed, RANDOM: random}, 1).items():
            seconds[name].append(one / counted[name])
    return seconds


def describe_lengths(corpus: Corpus) -> str:
    """Say how many gene tokens cells hold, and what a random batch would cost if every token cost the same."""
    view, draws = corpus.token_view(), np.random.default_rng(0)
    lengths = np.concatenate([view.read(number)[N_TOKENS] for number in range(len(view))])
    longest = draws.choice(lengths, (2000, 32)).max(axis=1).mean()
    return (f"Cells hold {np.median(lengths):.0f} gene tokens at the median, {lengths.mean():.0f} on average, {lengths.max()} at most; "
            f"the longest of a random batch holds {longest:.0f}, so that {longest / lengths.mean():.1f} times as many tokens are read.")  # fmt: skip


def joint_memory(folder: Path, size: Size, way: str) -> float:
    """Megabytes that one step of the joint stage adds, at its peak, to what this process held before it."""
    corpus = Corpus(folder / "corpus")
    encoder, view_folder = new_encoder(corpus, size), folder / "embedded"
    if not (view_folder / "view.json").is_file():
        cells = partial(embed_cells, encoder.eval(), cls_token=corpus.vocab.cls_token)
        shards = [shard for one in corpus.slice_ids for shard in embedded_shards(corpus, view_folder, one, cells, encoder_id="0")]
        write_view(view_folder, shards, made_from={})
        return 0.0
    view = View(view_folder)
    config = JointStageConfig(tokens_per_chunk=4_096 if way == CHUNKED else None)
    objectives = SE2Objectives.of(SE2StageConfig(), SE2Transformer(SE2TransformerConfig(n_layers=2)))
    stage = joint_stage(config, SE2StageConfig(), encoder.train(), objectives, corpus.token_view(), view,
                        make_view=lambda *_: view, cls_token=corpus.vocab.cls_token, seed=0)  # fmt: skip
    longest = max(range(len(view)), key=lambda number: view.places[number].slice_id)  # the last slice has the largest panel
    batch = stage.micro_batch([(0, longest)])
    forget_peak()
    before = peak_bytes()
    sum(value / max(1, batch.counts()[name]) for name, value in stage.model(batch).items()).backward()
    return (peak_bytes() - before) / 1e6


def in_child(what: str, folder: Path, size: Size) -> float:
    done = subprocess.run([sys.executable, __file__, what, folder, str(size is FULLY)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(json.loads(done.stdout.splitlines()[-1]))


def run_of(folder: Path, size: Size, name: str, n_processes: int) -> tuple[float, float]:
    """Cells a second and share of time waited for data in the SE(2) stage of a run of `stofm train`, its first steps left out."""
    config = PretrainConfig(
        corpus=str(folder / "corpus"), out=str(folder / name), cell_encoder=size.encoder, encoder_stage=None,
        se2_transformer=SE2TransformerConfig(n_layers=2), log_every=size.n_steps,
        se2_stage=SE2StageConfig(epochs=1000, max_steps=2 * size.n_steps, n_micro_batches=2),
    )  # fmt: skip
    launcher = ["torchrun", "--standalone", "--nproc_per_node", str(n_processes), "--no-python"] if n_processes > 1 else []
    line = last_lines(config, *launcher, OMP_NUM_THREADS="1")["se2"]
    return line["cells_per_second"], line["data_wait_share"]


def last_lines(config: PretrainConfig, *launcher: str, **environment: str) -> dict[str, dict[str, float]]:
    """What a run of `stofm train` says last of each of its stages."""
    written, programs = Path(config.out).with_suffix(".yaml"), Path(sys.executable).parent
    written.write_text(config.to_yaml(), encoding="utf-8")
    words = [*(launcher and (programs / launcher[0], *launcher[1:])), programs / "stofm", "train", written]
    subprocess.run(words, env=os.environ | environment, check=True, capture_output=True)
    return {line["stage"]: line for line in read_run_log(Path(config.out) / "losses.jsonl")}


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    make_corpus(folder, TINY)
    return folder


def test_bench_runs_tiny(tiny_folder: Path) -> None:
    seconds = seconds_per_cell(Corpus(tiny_folder / "corpus"), TINY)
    assert all(len(rounds) == 1 and rounds[0] > 0 for rounds in seconds.values())
    joint_memory(tiny_folder, TINY, "embed")
    assert all(joint_memory(tiny_folder, TINY, way) >= 0 for way in (CHUNKED, WHOLE))


@pytest.mark.slow
def test_training_is_fast_and_small(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, FULLY)
    torch.set_num_threads(1)
    seconds = seconds_per_cell(corpus, FULLY)
    in_child("embed", tmp_path, FULLY)
    memory = {way: in_child(way, tmp_path, FULLY) for way in (CHUNKED, WHOLE)}
    (one, waited), (two, _) = run_of(tmp_path, FULLY, "one", 1), run_of(tmp_path, FULLY, "two", 2)
    lines = [
        "# Training", "",
        "Question: how long does training wait for data, what do a second process, batches of like length and chunks of the joint stage bring?",
        f"Simulated slices of {FULLY.n_cells:,} cells with panels of {', '.join(map(str, FULLY.panels))} genes.",
        describe_lengths(corpus),
        "Encoder stage: milliseconds of processor time a cell, forward and backward, one thread, in turns.",
        "Joint stage: megabytes that one step adds, each way in a process of its own.",
        f"SE(2) stage: `stofm train`, one thread a process, the second half of {2 * FULLY.n_steps} steps.", "",
        "| encoder stage | processor ms a cell | least to most | ratio |", "|---|---|---|---|", *timing_rows(seconds, slow=RANDOM), "",
        "| joint stage | MB of a step |", "|---|---|", *(f"| {way} | {memory[way]:,.0f} |" for way in memory), "",
        "| SE(2) stage | cells a second | waited for data |", "|---|---|---|", f"| one process | {one:,.0f} | {waited:.2%} |",
        f"| two processes | {two:,.0f} | |", "",
        f"Reading: encoder {ratio(seconds, RANDOM, BUCKETED):.1f} times (at least {LEAST_BUCKETED:g} asked);",
        f"memory {memory[CHUNKED] / memory[WHOLE]:.2f} of all at once (at most {MOST_MEMORY:.2f});",
        f"two processes {two / one:.2f} times one (at least {LEAST_TWO}); waited {waited:.2%} (below {MOST_WAIT:.0%}).",
    ]  # fmt: skip
    write_report("training", lines, work=asdict(FULLY), packages=("numpy", "torch", "accelerate", "transformers"))
    assert ratio(seconds, RANDOM, BUCKETED) >= LEAST_BUCKETED
    assert memory[CHUNKED] <= MOST_MEMORY * memory[WHOLE]
    assert waited < MOST_WAIT
    assert two >= LEAST_TWO * one


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_does_not_wait_for_data(tmp_path: Path) -> None:
    make_corpus(tmp_path, ON_GPU)
    config = PretrainConfig(
        corpus=str(tmp_path / "corpus"), out=str(tmp_path / "run"), cell_encoder=ON_GPU.encoder, precision="bf16", log_every=ON_GPU.n_steps,
        encoder_stage=EncoderStageConfig(epochs=1000, max_steps=2 * ON_GPU.n_steps, cells_per_micro_batch=512),
        se2_stage=SE2StageConfig(epochs=1000, max_steps=2 * ON_GPU.n_steps, sub_slices_per_micro_batch=16),
        joint_stage=JointStageConfig(epochs=1000, max_steps=2 * ON_GPU.n_steps, tokens_per_chunk=65_536, refresh_every=1000),
    )  # fmt: skip
    stages = last_lines(config)
    rows = [
        f"| {name} | {line['cells_per_second']:,.0f} | {line['tokens_per_second']:,.0f} | {line['data_wait_share']:.1%} | {line['peak_share']:.1%} | "
        f"{line['memory_mb']:,.0f} |"
        for name, line in stages.items()
    ]
    lines = [
        "# Training on a GPU", "",
        "Question: how fast is `stofm train` with a model of the published size on one GPU, and does it wait for data? bfloat16, the second half of "
        f"{2 * ON_GPU.n_steps} steps of each stage: 512 cells, 16 sub-slices of 1,000 cells, one sub-slice at a time. The share is of the speed of "
        "a large matrix product on this GPU.",
        f"Simulated slices of {ON_GPU.n_cells:,} cells with panels of {', '.join(map(str, ON_GPU.panels))} genes.",
        describe_lengths(Corpus(tmp_path / "corpus")), "",
        "| stage | cells a second | tokens a second | waited for data | share of a product | MB on the GPU |", "|---|---|---|---|---|---|", *rows,
    ]  # fmt: skip
    write_report("training", lines, work=asdict(ON_GPU), packages=("numpy", "torch", "accelerate", "transformers"), on_gpu=True)
    assert max(line["data_wait_share"] for line in stages.values()) < MOST_WAIT_ON_GPU


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(joint_memory(Path(sys.argv[2]), FULLY if sys.argv[3] == "True" else TINY, sys.argv[1])))
