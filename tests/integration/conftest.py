"""Fixtures of the command line's tests: embedded slices and the heads fitted on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata
import pytest
from cli import succeed

MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def embedded(simulated_paths: list[Path], tiny_run: Path, make_once: MakeOnce) -> list[Path]:
    """What `stofm embed` makes of the simulated slices; tests only read it."""
    out = make_once("embedded", lambda folder: succeed("embed", *simulated_paths, "--model", tiny_run / "model", "--out", folder))
    return [out / path.name for path in simulated_paths]


@pytest.fixture(scope="session")
def region_head(embedded: list[Path], make_once: MakeOnce) -> Path:
    """A region head fitted on the first two slices; tests only read it."""
    return make_once("region_head", lambda folder: succeed("segment", "fit", *embedded[:2], "--out", folder))


@pytest.fixture(scope="session")
def cell_type_head(embedded: list[Path], make_once: MakeOnce) -> Path:
    """A cell type head fitted on the first two slices; tests only read it."""
    return make_once("cell_type_head", lambda folder: succeed("annotate", "fit", *embedded[:2], "--out", folder))


@pytest.fixture
def of_another_model(embedded: list[Path], tmp_path: Path) -> Path:
    """An embedded slice whose receipt names other weights."""
    table, path = anndata.read_h5ad(embedded[0]), tmp_path / "foreign.h5ad"
    table.uns["stofm"]["weights_sha256"] = "0" * 64
    table.write_h5ad(path)
    return path
