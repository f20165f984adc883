"""Fixtures: simulated slices, a tiny corpus built from them, a tiny finished pretraining run, and the shared real data."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from anndata import AnnData
from filelock import FileLock
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


MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def of_all_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the workers of the suite share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def make_once(of_all_workers: Path) -> MakeOnce:
    """Return a folder by its name: the first worker that asks for it makes it, the others wait for that and only read it."""

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = of_all_workers / name, of_all_workers / f"{name}.done"
        with FileLock(of_all_workers / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what a worker left that died over it
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def simulated_paths(make_once: MakeOnce) -> list[Path]:
    """Three simulated slices of 400 cells as .h5ad: human with 60 genes, mouse with 90, human with 60."""

    def simulate(folder: Path) -> None:
        folder.mkdir()
        for number, table in enumerate(simulate_slices(SimulationConfig(n_slices=3, n_cells=400, panel_sizes=[60, 90]))):
            table.write_h5ad(folder / f"slice_{number}.h5ad")

    return sorted(make_once("slices", simulate).iterdir())


@pytest.fixture(scope="session")
def tiny_corpus(simulated_paths: list[Path], make_once: MakeOnce) -> Corpus:
    """The corpus of the simulated slices; tests only read it."""
    return Corpus(make_once("tiny_corpus", lambda folder: build_corpus(corpus_config(simulated_paths, folder))))


@pytest.fixture(scope="session")
def tiny_run_config(tiny_corpus: Corpus, of_all_workers: Path) -> PretrainConfig:
    return PretrainConfig(
        corpus=str(tiny_corpus.folder),
        out=str(of_all_workers / "tiny_run"),
        cell_encoder=CellEncoderConfig(n_layers=1, width=32, n_heads=2, ffn_dim=32),
        se2_transformer=SE2TransformerConfig(n_layers=2, n_heads=4, n_neighbors=6),
        encoder_stage=EncoderStageConfig(max_steps=4, cells_per_micro_batch=64),
        se2_stage=SE2StageConfig(max_steps=4),
    )


@pytest.fixture(scope="session")
def tiny_run(tiny_run_config: PretrainConfig, make_once: MakeOnce) -> Path:
    """The folder of a finished pretraining run on the tiny corpus; tests only read it."""
    return make_once("tiny_run", lambda folder: train(tiny_run_config))


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
