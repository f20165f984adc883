"""Fixtures: simulated slices, a tiny corpus built from them, a tiny finished pretraining run, and the shared real data."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from anndata import AnnData
from hypothesis import settings
from synth import corpus_config

from corpus.build import build_corpus
from corpus.simulate import SimulationConfig, simulate_slices
from corpus.slice import SliceSpec
from corpus.store import Corpus
from pretrain.config import EncoderStageConfig, PretrainConfig, SE2StageConfig
from pretrain.train import train
from stofm.cell_encoder import CellEncoderConfig
from stofm.se2_transformer import SE2TransformerConfig

settings.register_profile("stofm", database=None, deadline=None, derandomize=True, max_examples=60)
settings.load_profile("stofm")


def pytest_xdist_auto_num_workers() -> int:
    """A worker more than cores, for some tests wait."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_finish() -> None:
    """Leave what was imported alone when memory is collected, which training does at the end of every stage."""
    gc.freeze()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """A core for every worker of the suite; threads that wait for each other on a full machine take several times as long.

    Set before every test, for some libraries change it when they are used.
    """
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def simulated_paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three simulated slices of 400 cells as .h5ad: human with 60 genes, mouse with 90, human with 60."""
    folder = tmp_path_factory.mktemp("slices")
    paths = [folder / f"slice_{number}.h5ad" for number in range(3)]
    for path, table in zip(paths, simulate_slices(SimulationConfig(n_slices=3, n_cells=400, panel_sizes=[60, 90])), strict=True):
        table.write_h5ad(path)
    return paths


@pytest.fixture(scope="session")
def tiny_corpus(simulated_paths: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The corpus of the simulated slices; tests only read it."""
    return build_corpus(corpus_config(simulated_paths, tmp_path_factory.mktemp("corpus") / "tiny"))


@pytest.fixture(scope="session")
def tiny_run_config(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    return PretrainConfig(
        corpus=str(tiny_corpus.folder),
        out=str(tmp_path_factory.mktemp("runs") / "tiny"),
        cell_encoder=CellEncoderConfig(n_layers=1, width=32, n_heads=2, ffn_dim=32),
        se2_transformer=SE2TransformerConfig(n_layers=2, n_heads=4, n_neighbors=6),
        encoder_stage=EncoderStageConfig(max_steps=4, cells_per_micro_batch=64),
        se2_stage=SE2StageConfig(max_steps=4),
    )


@pytest.fixture(scope="session")
def tiny_run(tiny_run_config: PretrainConfig) -> Path:
    """The folder of a finished pretraining run on the tiny corpus; tests only read it."""
    train(tiny_run_config)
    return Path(tiny_run_config.out)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., SliceSpec]:
    """Write a table to a file and say how to read it."""

    def write_and_specify(table: AnnData, **settings: object) -> SliceSpec:
        table.write_h5ad(tmp_path / "made.h5ad")
        return SliceSpec(path=str(tmp_path / "made.h5ad"), **settings)

    return write_and_specify


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real slices and gene tables, which the repository does not carry."""
    folder = Path(os.environ.get("STOFM_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real slices: no folder {folder / 'data'}; set STOFM_SHARED to the folder that holds data/ and genes/")
    return folder
