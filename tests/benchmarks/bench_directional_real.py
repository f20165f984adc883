"""What relative directions add on real slices: regions and cell types of STARmap, the same small model with and without them.

Question: does `geometry: directional`, with or without denoising, read more from labelled tissue than distances do? Same corpus, same cell
encoder, same head, each slice held out in turn; the spread is over seeds.

    make bench      runs it fully and writes results/directional_real_cpu_<date>.md, where the real slices are at hand
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from bench_directional import MODELS, MOST
from report import write_report

from corpus.build import CorpusConfig, build_corpus
from corpus.scales import ScaleConfig
from corpus.slice import SliceSpec
from corpus.sub_slices import SubSliceConfig
from downstream.evaluate import EvaluateConfig, TaskConfig, evaluate
from downstream.features import STOFM
from pretrain.config import OptimConfig, PretrainConfig, SE2StageConfig
from pretrain.train import train
from stofm.cell_encoder import CellEncoderConfig
from stofm.se2_transformer import SE2TransformerConfig

SLICES = ("starmap_mpfc_BZ5", "starmap_mpfc_BZ9")
UM_PER_UNIT = 0.0625
TASKS = ("region", "cell_type")
N_SEEDS, EPOCHS = 3, 12


def scores_of(
    specs: Sequence[SliceSpec], folder: Path, seed: int, *, epochs: float, models: Sequence[str] = tuple(MODELS), tasks: Sequence[str] = TASKS
) -> pd.DataFrame:
    """Train these models on the slices without their labels; macro-F1 by task and features, mean over held-out slices, models by their names."""
    scales = ScaleConfig(sub_slices=SubSliceConfig(n_cells=250))
    corpus = build_corpus(CorpusConfig(out=str(folder / "corpus"), slices=list(specs), scales=scales))
    tables = []
    for name in models:
        of_transformer, of_stage = MODELS[name]
        out = folder / name.replace(" ", "_")
        config = PretrainConfig(
            corpus=str(corpus.folder), out=str(out), seed=seed, save_every=100_000,
            cell_encoder=CellEncoderConfig(n_layers=1, width=64, ffn_dim=64), encoder_stage=None,
            se2_transformer=SE2TransformerConfig(n_layers=2, **of_transformer),
            se2_stage=SE2StageConfig(epochs=epochs, optim=OptimConfig(lr=1e-3), **of_stage),
        )  # fmt: skip
        asked = [TaskConfig(name=task, task=task, slices=list(specs)) for task in tasks]
        evaluate(EvaluateConfig(model=str(train(config)), out=str(out / "evaluation"), tasks=asked, allow_seen=True))
        tables.append(pd.read_csv(out / "evaluation" / "scores.csv").dropna(subset="macro_f1").replace({"features": {STOFM: name}}))
    means = pd.concat(tables).groupby(["task", "features"], sort=False)["macro_f1"].mean()
    return means.unstack("task")  # rows: baselines, then models


def test_bench_runs_tiny(simulated_paths: list[Path], tmp_path: Path) -> None:
    scores = scores_of([SliceSpec(path=str(path)) for path in simulated_paths[::2]], tmp_path, 0, epochs=0.2, models=MOST, tasks=TASKS[:1])
    assert set(MOST) < set(scores.index)
    assert scores.stack().between(0, 1).all()


@pytest.mark.slow
def test_what_directions_add_on_real_slices(shared_data: Path, tmp_path: Path) -> None:
    specs = [SliceSpec(path=str(shared_data / "data" / f"{name}.h5ad"), um_per_unit=UM_PER_UNIT) for name in SLICES]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    runs = [scores_of(specs, tmp_path / f"seed_{seed}", seed, epochs=EPOCHS) for seed in range(N_SEEDS)]
    torch.set_num_threads(threads)
    write_result(runs)
    assert all(run.notna().all(axis=None) for run in runs)  # which model reads more is reported; the default is off until directions do


def write_result(runs: list[pd.DataFrame]) -> None:
    """Keep a run as ``results/directional_real_cpu_<date>.md``."""
    every = pd.concat(runs, keys=range(len(runs)), names=["seed"])
    mean, spread = every.groupby("features", sort=False).mean(), every.groupby("features", sort=False).std(ddof=1)
    lines = [
        "# What relative directions add on real slices",
        "",
        f"Question: do relative directions of neighbours add anything on {' and '.join(SLICES)}? Macro-F1, each slice held out in turn,",
        f"the same head on each kind of features; mean ± standard deviation over {len(runs)} seeds. Transformers of 2 layers, trained without",
        f"labels on both slices for {EPOCHS} epochs on the same untrained cell encoder (its co-expression start), so levels are below those of a",
        "full training.",
        "",
        "| features | " + " | ".join(mean.columns) + " |",
        "|---|" + "---|" * len(mean.columns),
        *(
            f"| {name} | " + " | ".join(f"{mean.loc[name, task]:.3f} ± {spread.loc[name, task]:.3f}" for task in mean.columns) + " |"
            for name in mean.index
        ),
        "",
        "Each seed, models alone: " + "; ".join(f"{name} {task} " + ", ".join(f"{run.loc[name, task]:.3f}" for run in runs)
                                                for task in mean.columns for name in MODELS) + ".",
    ]  # fmt: skip
    write_report("directional_real", lines, work={"epochs": EPOCHS, "seeds": len(runs)}, packages=("torch", "e3nn", "scikit-learn", "numpy"))
