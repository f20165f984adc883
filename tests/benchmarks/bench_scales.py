"""Which scale catches which signal: on slices where only the neighbourhood, or only the tissue, tells regions apart.

Question: does the full model read what the cell encoder alone cannot (neighbourhood), and do virtual cells carry what a
sub-slice cannot hold (tissue)? Same slices, same head, regions of a held-out slice; the spread is over seeds.

    make bench      runs it fully and writes results/scales_cpu_<date>.md
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from report import write_report

from corpus.build import CorpusConfig, build_corpus
from corpus.readers import read_slice
from corpus.scales import ScaleConfig
from corpus.simulate import SimulationConfig, simulate_slices
from corpus.slice import SliceSpec
from corpus.sub_slices import SubSliceConfig
from corpus.virtual_cells import VirtualCellConfig
from downstream.embedding import embed_slice, load_embedder, write_table
from downstream.heads import most_probable
from downstream.probes import ProbeConfig, fit_probe
from downstream.scores import score_labels
from pretrain.config import EncoderStageConfig, OptimConfig, PretrainConfig, SE2StageConfig
from pretrain.train import train
from stofm.cell_encoder import CellEncoderConfig
from stofm.se2_transformer import SE2TransformerConfig

# Beside gene_signal=False. Two bands are mirror images: of three, the middle one would be betrayed by what lies at the tissue's edge.
SIGNALS = {"neighborhood": {"tissue_signal": False, "n_regions": 3}, "tissue": {"neighborhood_signal": False, "n_regions": 2}}
ENCODER, NO_VIRTUAL, FULL = "cell encoder", "no virtual cells", "full model"
N_SEEDS = 3


@dataclass(frozen=True)
class Size:
    """How much work one run is."""

    n_slices: int
    n_cells: int
    encoder_epochs: float
    se2_epochs: float


FULLY = Size(n_slices=6, n_cells=1500, encoder_epochs=1, se2_epochs=16)
TINY = Size(n_slices=2, n_cells=300, encoder_epochs=0.1, se2_epochs=0.5)


def region_scores(folder: Path, signal: str, seed: int, size: Size) -> dict[str, float]:
    """Macro-F1 of the regions of a held-out slice, by what the head reads."""
    folder.mkdir(parents=True, exist_ok=True)
    world = SimulationConfig(
        n_slices=size.n_slices, n_cells=size.n_cells, panel_sizes=[120], species=["human"], n_types=4, gene_signal=False,
        depth=300.0, seed=seed, **SIGNALS[signal],
    )  # fmt: skip
    specs = [SliceSpec(path=str(folder / f"slice_{number}.h5ad")) for number in range(size.n_slices)]
    for spec, table in zip(specs, simulate_slices(world), strict=True):
        write_table(table, Path(spec.path))
    slices = [read_slice(spec) for spec in specs]
    scores = {}
    for name, n_virtual in ((NO_VIRTUAL, 0), (FULL, 24)):
        scales = ScaleConfig(sub_slices=SubSliceConfig(n_cells=125), virtual_cells=VirtualCellConfig(n_max=n_virtual))
        build_corpus(CorpusConfig(out=str(folder / name / "corpus"), slices=specs[:-1], scales=scales))
        model = train(run_config(folder / name, seed, size))
        embedder = load_embedder(model, device="cpu")
        results = [embed_slice(one, embedder) for one in slices]
        scores[name] = held_out_f1([one.cell_repr for one in results], [one.labels["region"] for one in slices])
    scores[ENCODER] = held_out_f1([one.cell_embeddings for one in results], [one.labels["region"] for one in slices])
    return scores


def run_config(folder: Path, seed: int, size: Size) -> PretrainConfig:
    return PretrainConfig(
        corpus=str(folder / "corpus"), out=str(folder / "run"), seed=seed,
        cell_encoder=CellEncoderConfig(n_layers=1, width=64, ffn_dim=64),
        encoder_stage=EncoderStageConfig(epochs=size.encoder_epochs, optim=OptimConfig(lr=1e-3)),
        se2_transformer=SE2TransformerConfig(n_layers=2, n_neighbors=8),
        se2_stage=SE2StageConfig(epochs=size.se2_epochs, sub_slices_per_micro_batch=4, optim=OptimConfig(lr=5e-4)),
        save_every=10_000,
    )  # fmt: skip


def held_out_f1(features: list[np.ndarray], regions: list[np.ndarray]) -> float:
    probe = fit_probe(list(zip(features[:-1], regions[:-1], strict=True)), ProbeConfig(kind="mlp"))
    return score_labels(regions[-1], most_probable(probe.classes, probe.predict_proba(features[-1]))).macro_f1


def test_bench_runs_tiny(tmp_path: Path) -> None:
    scores = region_scores(tmp_path, "tissue", seed=0, size=TINY)
    assert set(scores) == {ENCODER, NO_VIRTUAL, FULL}
    assert all(0 <= score <= 1 for score in scores.values())


@pytest.mark.slow
def test_every_signal_is_caught_by_its_scale(tmp_path: Path) -> None:
    scores = {signal: [region_scores(tmp_path / f"{signal}_{seed}", signal, seed, FULLY) for seed in range(N_SEEDS)] for signal in SIGNALS}
    write_result(scores)
    for signal, loser in (("neighborhood", ENCODER), ("tissue", NO_VIRTUAL)):
        margins = [one[FULL] - one[loser] for one in scores[signal]]
        assert np.mean(margins) > np.std(margins, ddof=1), (signal, margins)


def write_result(scores: dict[str, list[dict[str, float]]]) -> None:
    """Keep a run as ``results/scales_cpu_<date>.md``: question, command, versions, machine, figures."""
    lines = [
        "# Which scale catches which signal",
        "",
        "Question: on simulated slices where only one signal tells regions apart, does the scale that should catch it catch it?",
        f"Macro-F1 of the regions of a held-out slice, the same MLP head on each; mean ± standard deviation over {N_SEEDS} seeds.",
        "",
        f"| signal | {' | '.join((ENCODER, NO_VIRTUAL, FULL))} |",
        "|---|---|---|---|",
    ]
    for signal, of_seeds in scores.items():
        cells = [f"{np.mean([one[name] for one in of_seeds]):.3f} ± {np.std([one[name] for one in of_seeds], ddof=1):.3f}"
                 for name in (ENCODER, NO_VIRTUAL, FULL)]  # fmt: skip
        lines.append(f"| {signal} | {' | '.join(cells)} |")
    rounded = {signal: [{name: round(score, 3) for name, score in one.items()} for one in of_seeds] for signal, of_seeds in scores.items()}
    lines += ["", f"Each seed: {rounded}"]
    write_report("scales", lines, work=FULLY, packages=("torch", "transformers", "scikit-learn", "numpy"))
