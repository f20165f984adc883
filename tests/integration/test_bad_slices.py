"""A bad slice, whichever verb meets it: one line that names it and the remedy, exit code 2, earlier results untouched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from bad_slices import BAD_SLICES, good_table, written
from cli import contents, refused, stofm, write_yaml

from corpus.store import CORPUS_KIND
from downstream.evaluate import EVALUATION_KIND
from stofm.durable import MARKER, write_json
from tools.embed import EMBEDDED_KIND


@pytest.fixture
def earlier(tmp_path) -> Path:
    """An output folder with results of an earlier command; its marker is set by `claimed`."""
    (tmp_path / "out" / "slices").mkdir(parents=True)
    (tmp_path / "out" / "slice.h5ad").write_bytes(b"a result of yesterday")
    (tmp_path / "out" / "slices" / "slice.zarr.zip").write_bytes(b"another one")
    return tmp_path / "out"


def claimed(folder: Path, kind: str) -> Path:
    """Make `folder`, which holds results already, one of this kind."""
    write_json(folder / MARKER, {"kind": kind})
    return folder


def check(path: Path, out: Path, model: Path) -> list[object]:
    return ["check", path]


def embed(path: Path, out: Path, model: Path) -> list[object]:
    return ["embed", path, "--model", model, "--out", claimed(out, EMBEDDED_KIND)]


def build(path: Path, out: Path, model: Path, **settings: object) -> list[object]:
    config = {"out": str(claimed(out, CORPUS_KIND)), "slices": [{"path": str(path), **settings}]}
    return ["build", write_yaml(path.parent / "config.yaml", config)]


def evaluate(path: Path, out: Path, model: Path, **settings: object) -> list[object]:
    good = path.parent / "good.h5ad"
    good_table().write_h5ad(good)
    task = {"name": "regions", "task": "region", "slices": [{"path": str(good)}, {"path": str(path), **settings}]}
    config = {"out": str(claimed(out, EVALUATION_KIND)), "model": str(model), "tasks": [task]}
    return ["evaluate", write_yaml(path.parent / "config.yaml", config)]


@pytest.mark.parametrize("command", [check, embed, build, evaluate], ids=lambda command: command.__name__)
@pytest.mark.parametrize("fault", BAD_SLICES)
def test_a_bad_slice_is_refused_in_one_line_and_nothing_is_lost(fault, command, tmp_path, earlier, tiny_run):
    make, found, remedy = BAD_SLICES[fault]
    path = tmp_path / "slice.h5ad"
    make(path)
    words = command(path, earlier, tiny_run / "model")
    before = contents(earlier)
    line = refused(*words)
    assert f"slice 'slice' ({path})" in line
    assert found in line
    assert "expected" in line
    assert remedy in line
    assert before.items() <= contents(earlier).items()
    assert not {"manifest.json", "table.md"} & set(contents(earlier))


@pytest.mark.parametrize("command", [build, evaluate], ids=lambda command: command.__name__)
def test_a_labelled_column_that_is_absent_is_refused(command, tmp_path, earlier, tiny_run):
    path = tmp_path / "slice.h5ad"
    good_table().write_h5ad(path)
    words = command(path, earlier, tiny_run / "model", labels={"region": "layer"})
    before = contents(earlier)
    line = refused(*words)
    assert f"slice 'slice' ({path})" in line
    assert "labelled column 'layer' is absent: found obs columns ['cell_type', 'region']" in line
    assert before.items() <= contents(earlier).items()


def test_a_task_without_labels_is_refused(tmp_path, earlier, tiny_run):
    path = tmp_path / "slice.h5ad"
    written(lambda one: one.obs.drop(columns="region", inplace=True))(path)
    line = refused(*evaluate(path, earlier, tiny_run / "model"))
    assert "slice 'slice'" in line
    assert "'region' labels" in line


def test_of_several_slices_check_names_every_bad_one_and_counts_them(tmp_path):
    for name in ("one", "two"):
        BAD_SLICES["NaN coordinates"][0](tmp_path / f"{name}.h5ad")
    good_table().write_h5ad(tmp_path / "good.h5ad")
    outcome = stofm("check", *(tmp_path / f"{name}.h5ad" for name in ("one", "good", "two")))
    assert outcome.code == 2
    first, second, count = outcome.stderr.splitlines()
    assert "slice 'one'" in first
    assert "slice 'two'" in second
    assert "2 of 3 slices" in count
    assert "good: can be used" in outcome.stdout


def test_of_several_slices_build_keeps_the_good_ones_and_says_which_it_set_aside(tmp_path):
    BAD_SLICES["NaN coordinates"][0](tmp_path / "bad.h5ad")
    good_table().write_h5ad(tmp_path / "good.h5ad")
    slices = [{"path": str(tmp_path / f"{name}.h5ad")} for name in ("good", "bad")]
    config = write_yaml(tmp_path / "config.yaml", {"out": str(tmp_path / "corpus"), "slices": slices})
    outcome = stofm("build", config)
    assert outcome.code == 3
    assert f"bad: set aside, 30 cells: slice 'bad' ({tmp_path / 'bad.h5ad'})" in outcome.stdout
    assert "slices: 2 = 1 kept + 0 left out + 1 set aside" in outcome.stdout
    assert "cells: 60 = 30 kept + 30 quarantined: NO_COORDS" in outcome.stdout
    kept = contents(tmp_path / "corpus")
    assert {"slices/good/cells.zarr.zip", "quarantine/bad.json", "manifest.json"} <= set(kept)
    good_table()[::2].copy().write_h5ad(tmp_path / "bad.h5ad")
    outcome = stofm("build", config)
    assert outcome.code == 0
    assert "bad: left out, 15 cells: same cells as good (DUPLICATE)" in outcome.stdout
    assert contents(tmp_path / "corpus")["slices/good/cells.zarr.zip"] == kept["slices/good/cells.zarr.zip"]


def test_the_screen_of_a_process_of_its_own_shows_nothing_of_libraries(tmp_path, simulated_paths, tiny_run):
    words = ["embed", simulated_paths[0], tmp_path / "none.h5ad", "--model", tiny_run / "model", "--out", tmp_path / "out"]
    done = subprocess.run([Path(sys.executable).with_name("stofm"), *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    first, last = done.stderr.splitlines()
    assert first.startswith("error: slice 'none'")
    assert last.startswith("error: 1 of 2 slices were not embedded")
    assert all(line.startswith(("  slice_0: ", "slice_0: ")) for line in done.stdout.splitlines())
