"""A build among faults: every bad slice is set aside under its code with a remedy, and the others are what they are without it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from synth import corpus_config
from test_faults_of_slices import REFUSED, N

from corpus.build import CorpusConfig, ToleranceConfig, build_corpus
from corpus.simulate import SimulationConfig, simulate_slice
from corpus.slice import SliceSpec
from corpus.store import Corpus
from corpus.summary import summary_lines
from corpus.tasks import TaskConfig
from stofm.durable import tree_sha256
from stofm.errors import DataError, EnvironmentFault


def hdf5_of_something_else(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["temperatures"] = np.arange(5)


def with_flipped_bytes(path: Path, good: Path) -> None:
    data = bytearray(good.read_bytes())
    data[2000:6000] = bytes(4000)
    path.write_bytes(data)


def changed(path: Path, good: Path, change: Callable[[anndata.AnnData], None]) -> None:
    table = anndata.read_h5ad(good)
    change(table)
    table.write_h5ad(path)


def license_otherwise(table: anndata.AnnData) -> None:
    table.uns["provenance"]["license"] = "none of yours"


def license_unsaid(table: anndata.AnnData) -> None:
    del table.uns["provenance"]["license"]


def name_genes_as_nobody_does(table: anndata.AnnData) -> None:
    table.var_names = [*table.var_names[:5], *(f"probe-{number}" for number in range(5, table.n_vars))]


# Faults of files, and those that a build alone looks for, beside those of tables in REFUSED: how each comes about, its code, what the record says
OF_FILES = {
    "missing": (lambda path, good: None, "INPUT_MISSING", "no such file"),
    "text": (lambda path, good: path.write_text("cell,gene\n"), "INPUT_UNREADABLE", "not readable as AnnData"),
    "truncated": (lambda path, good: path.write_bytes(good.read_bytes()[:5000]), "INPUT_UNREADABLE", "not readable as AnnData"),
    "bytes lost inside": (with_flipped_bytes, "INPUT_UNREADABLE", "not readable as AnnData"),
    "HDF5 of something else": (lambda path, good: hdf5_of_something_else(path), "INPUT_UNREADABLE", "not readable as AnnData"),
    "empty folder": (lambda path, good: path.mkdir(), "INPUT_UNREADABLE", "not readable as AnnData"),
    "another file than was meant": (lambda path, good: shutil.copy(good, path), "INPUT_CHANGED", "expected 00000"),
    "a licence that is not allowed": (lambda path, good: changed(path, good, license_otherwise), "LICENSE", "found licence 'none of yours'"),
    "a licence that nobody states": (lambda path, good: changed(path, good, license_unsaid), "LICENSE", "found licence 'none stated'"),
    "genes that nobody knows": (lambda path, good: changed(path, good, name_genes_as_nobody_does), "VOCAB", "5 of 30 genes with counts map to human"),
}  # fmt: skip
MEANT = {"another file than was meant": "0" * 64}


def name_of(fault: str) -> str:
    return fault.replace(" ", "_")


@pytest.fixture(scope="module")
def good_paths(tmp_path_factory) -> list[Path]:
    """Two slices with nothing wrong."""
    folder, paths = tmp_path_factory.mktemp("good"), []
    for number in range(2):
        table = simulate_slice(SimulationConfig(n_cells=N, panel_sizes=[30], seed=number), number)
        table.uns["provenance"]["license"] = "CC0"
        paths.append(folder / f"good_{number}.h5ad")
        table.write_h5ad(paths[-1])
    return paths


def config_of(specs: list[SliceSpec], out: Path) -> CorpusConfig:
    return CorpusConfig(
        out=str(out),
        slices=specs,
        licenses=["CC0"],
        tolerance=ToleranceConfig(max_share_of_slices=1, max_share_of_cells=1),
        tasks=TaskConfig(n_workers=1),
    )


@pytest.fixture(scope="module")
def among_faults(good_paths, tmp_path_factory) -> Corpus:
    """A corpus of the good slices and of one slice for every fault; tests only read it."""
    folder, specs = tmp_path_factory.mktemp("faults"), [SliceSpec(path=str(good_paths[0]))]
    for fault, (plant, *_) in REFUSED.items():
        table = simulate_slice(SimulationConfig(n_cells=N, panel_sizes=[30]), 0)
        table.uns["provenance"]["license"] = "CC0"
        spoilt = plant(table)
        (table if spoilt is None else spoilt).write_h5ad(folder / f"{name_of(fault)}.h5ad")
    for fault, (make, *_) in OF_FILES.items():
        make(folder / f"{name_of(fault)}.h5ad", good_paths[1])
    specs += [SliceSpec(path=str(folder / f"{name_of(fault)}.h5ad"), sha256=MEANT.get(fault)) for fault in [*REFUSED, *OF_FILES]]
    return build_corpus(config_of([*specs, SliceSpec(path=str(good_paths[1]))], folder / "corpus"))


@pytest.mark.parametrize("fault", [*REFUSED, *OF_FILES])
def test_a_bad_slice_is_set_aside_under_its_code_with_what_was_found(among_faults, fault):
    code, found = REFUSED[fault][1:3] if fault in REFUSED else OF_FILES[fault][1:]
    record = json.loads((among_faults.folder / "quarantine" / f"{name_of(fault)}.json").read_text())
    assert record["code"] == code
    assert record["detail"].startswith(f"slice '{name_of(fault)}' ({record['path']}): ")
    assert found.replace("\\", "") in record["detail"]
    assert "expected" in record["detail"]
    assert set(record) >= {"slice_id", "input_sha256", "versions", "n_in"}


def test_slices_beside_bad_ones_are_what_they_are_without_them(among_faults, good_paths, tmp_path):
    alone = build_corpus(config_of([SliceSpec(path=str(path)) for path in good_paths], tmp_path / "corpus"))
    parts = ("slices", "sketches", "views")
    assert {part: tree_sha256(alone.folder / part) for part in parts} == {part: tree_sha256(among_faults.folder / part) for part in parts}


def test_the_summary_accounts_for_every_slice_and_every_cell(among_faults):
    slices, rejects = (pd.read_parquet(among_faults.folder / f"{name}.parquet") for name in ("slices", "rejects"))
    assert len(slices) == 2 + len(REFUSED) + len(OF_FILES)
    assert (slices["fate"] == "kept").sum() == 2
    lost = rejects.groupby("slice_id")["n_cells"].sum().reindex(slices["slice_id"], fill_value=0).to_numpy()
    known = slices["n_in"].notna().to_numpy()
    assert (slices["n_in"] - slices["n_kept"]).to_numpy()[known].tolist() == lost[known].tolist()
    assert slices.loc[~known, "code"].isin(["INPUT_UNREADABLE", "INPUT_MISSING", "INPUT_CHANGED"]).all()
    *_, n_slices, n_cells = summary_lines(among_faults.manifest)
    assert n_slices == f"slices: {len(slices)} = 2 kept + 0 left out + {len(slices) - 2} set aside"
    assert n_cells.startswith(f"cells: {slices['n_in'].sum():,} = {slices['n_kept'].sum():,} kept + ")


@pytest.mark.parametrize("by", ["slice_0", "a donor", "sha256"])
def test_an_excluded_slice_and_its_copies_are_left_out(by, simulated_paths, tmp_path):
    copy = tmp_path / "copy.h5ad"
    anndata.read_h5ad(simulated_paths[0])[::2].copy().write_h5ad(copy)
    specs = [SliceSpec(path=str(path)) for path in [copy, *simulated_paths]]
    specs[1] = specs[1].model_copy(update={"donor": "a donor"})
    config = corpus_config(simulated_paths, tmp_path / "corpus").model_copy(update={"slices": specs})
    name = build_corpus(config.model_copy(update={"out": str(tmp_path / "all")})).manifest["slices"][0]["input_sha256"] if by == "sha256" else by
    corpus = build_corpus(config.model_copy(update={"exclude": [name]}))
    assert corpus.slice_ids == ["slice_1", "slice_2"]
    assert {one["slice_id"]: one["code"] for one in corpus.manifest["left_out"]} == {"slice_0": "EXCLUDED", "copy": "COPY_OF_EXCLUDED"}


def test_a_corpus_whose_slices_are_all_excluded_is_refused(simulated_paths, tmp_path):
    config = corpus_config(simulated_paths[:1], tmp_path / "corpus").model_copy(update={"exclude": ["slice_0"]})
    with pytest.raises(DataError, match="all 1 usable slices are excluded"):
        build_corpus(config)


def test_too_little_space_is_said_before_anything_is_read(simulated_paths, tmp_path):
    config = corpus_config(simulated_paths, tmp_path / "corpus").model_copy(update={"tasks": TaskConfig(n_workers=1, reserve_gb=10**9)})
    with pytest.raises(EnvironmentFault, match=r"GB free on its disk; expected 1e\+09 GB .*Make space"):
        build_corpus(config)
    assert not (tmp_path / "corpus" / "slices").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 16 MB."""
    (tmp_path / "disk").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", tmp_path / "disk"], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a disk of a few megabytes needs the right to mount one: {mounted.stderr.strip()}")
    yield tmp_path / "disk"
    subprocess.run(["umount", tmp_path / "disk"], check=True)


@pytest.mark.parametrize("stage", ["reading slices", "duplicates", "gene tokens", "packing shards", "view"])
def test_a_build_waits_for_space_on_a_full_disk_and_ends_with_the_same_bytes(stage, small_disk, tiny_corpus, simulated_paths, monkeypatch):
    monkeypatch.setattr("corpus.tasks.FIRST_WAIT_SECONDS", 0.1)
    filler, reports = small_disk / "filler", []

    @contextlib.contextmanager
    def fill_before(what: str, total: int):
        if what == stage:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        yield lambda name: None

    def make_space(text: str) -> None:
        reports.append(text)
        filler.unlink(missing_ok=True)

    settings = corpus_config(simulated_paths, small_disk / "corpus").model_copy(update={"tasks": TaskConfig(n_workers=1, reserve_gb=0)})
    corpus = build_corpus(settings, track=fill_before, report=make_space)
    assert any("ENOSPC" in report for report in reports)
    assert corpus.corpus_id == tiny_corpus.corpus_id
    unlike = {".lock", "config.yaml"}
    assert {k: v for k, v in tree_sha256(corpus.folder).items() if k not in unlike} == {
        k: v for k, v in tree_sha256(tiny_corpus.folder).items() if k not in unlike
    }
