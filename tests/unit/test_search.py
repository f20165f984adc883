"""Search: what exact search finds is found, in the right slice and row, by the model's own index only."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from downstream.search import (
    CELLS,
    KINDS,
    VECTORS,
    Embedded,
    IndexConfig,
    SearchIndex,
    build_index,
    exact_search,
    kind_for,
    open_index,
    recall_at,
    require_index_of,
)
from downstream.search_plan import plan_index
from stofm.errors import ConfigError, DataError, FormatError

N_EACH = 300


def embedded_slice(number: int) -> Embedded:
    """A slice of its own kind of cells, on a grid; its cell 5 was not embedded and its cell 9 has no place."""
    rng = np.random.default_rng(number)
    cell_repr = (rng.normal(size=(N_EACH, 8)) @ np.random.default_rng(99).normal(size=(8, 256)) + 3 * number + rng.normal(size=(N_EACH, 256))).astype(
        np.float32
    )
    cell_repr[5] = np.nan
    coords = np.stack(np.divmod(np.arange(N_EACH), 30), axis=1) * 10.0
    coords[9] = np.nan
    return Embedded(f"slice_{number}", cell_repr, coords)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("indexes")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr("downstream.search.TRAINING_ROUNDS", 2)
    for kind in KINDS:
        build_index(out / kind, [partial(embedded_slice, number) for number in range(3)], "a" * 64, IndexConfig(kind=kind))
    monkeypatch.undo()
    return {kind: out / kind for kind in KINDS}


@pytest.fixture(params=KINDS)
def index(request: pytest.FixtureRequest, folders: dict[str, Path]) -> SearchIndex:
    return open_index(folders[request.param])


def test_exact_search_is_what_numpy_finds() -> None:
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(300, 256)).astype(np.float16), rng.normal(size=(7, 256)).astype(np.float32)
    found, similarity = exact_search(vectors, queries, 5, (100, 120))
    true = queries @ vectors.astype(np.float32).T
    true[:, 100:120] = -np.inf
    np.testing.assert_array_equal(found, np.argsort(-true, axis=1)[:, :5])
    np.testing.assert_allclose(similarity, -np.sort(-true, axis=1)[:, :5], rtol=1e-5)


def test_an_embedded_cell_finds_itself_in_its_slice_and_row(index: SearchIndex) -> None:
    for number in range(3):
        rows = np.array([0, 4, 6, 250])
        found, similarity = index.nearest_cells(embedded_slice(number).cell_repr[rows], 3)
        slices, at = index.place(found[:, 0])
        assert slices.tolist() == [number] * 4
        np.testing.assert_array_equal(at, rows)
        np.testing.assert_allclose(similarity[:, 0], 1, atol=2e-3)
        assert (np.diff(similarity, axis=1) <= 0).all()


def test_the_recall_that_was_measured_is_the_recall_of_the_index(index: SearchIndex) -> None:
    assert index.meta.recall_at_10 >= 0.95
    others = np.arange(3, sum(index.meta.n_cells), 17)  # not those it was measured by
    assert recall_at(index, others, index.meta.effort) >= 0.9


def test_a_slice_passed_over_gives_no_hits(index: SearchIndex) -> None:
    found, _ = index.nearest_cells(embedded_slice(1).cell_repr[:4], 10, without="slice_1")
    assert (found >= 0).all()
    assert 1 not in index.place(found.ravel())[0]
    patches, _ = index.nearest_patches(embedded_slice(1).cell_repr[:4], 50, without="slice_1")
    assert 1 not in index.patches["slices"][patches]


def test_cells_not_embedded_are_in_no_index(index: SearchIndex) -> None:
    assert index.meta.n_cells == [N_EACH - 1] * 3
    assert 5 not in index.rows
    assert index.patches["sizes"].sum() == 3 * (N_EACH - 2)


def test_a_region_finds_its_own_tissue(index: SearchIndex) -> None:
    patch = int(np.flatnonzero(index.patches["slices"] == 2)[0])
    near = np.linalg.norm(np.delete(embedded_slice(2).coords_um, 5, axis=0) - index.patches["centres_um"][patch], axis=1)
    rows = np.argsort(np.nan_to_num(near, nan=np.inf))[: index.patches["sizes"][patch]]
    raw = np.delete(embedded_slice(2).cell_repr, 5, axis=0)[rows]
    found, similarity = index.nearest_patches(raw, 3)
    assert index.patches["slices"][found[0]] == 2
    assert similarity[0] > 0.8
    assert (np.diff(similarity) <= 0).all()


def test_two_builds_give_the_same_files(folders: dict[str, Path], tmp_path: Path) -> None:
    build_index(tmp_path / "again", [partial(embedded_slice, number) for number in range(3)], "a" * 64, IndexConfig(kind="flat"))
    assert (tmp_path / "again" / VECTORS).read_bytes() == (folders["flat"] / VECTORS).read_bytes()


def test_an_index_of_another_model_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="made of model aaaaaaaaaaaa; expected bbbbbbbbbbbb, that of slice 'mine'"):
        require_index_of(open_index(folders["flat"]), "b" * 64, "mine")


@pytest.mark.parametrize(("name", "kind"), [(VECTORS, "flat"), (CELLS, "hnsw"), ("patches.safetensors", "flat"), (CELLS, "ivfpq")])
def test_a_damaged_file_is_named(name: str, kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[kind], tmp_path / "damaged")
    file = tmp_path / "damaged" / name
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(FormatError, match="Build the index again"):
        open_index(tmp_path / "damaged")


def test_a_folder_that_is_no_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stofm index build"):
        open_index(tmp_path)


def test_nothing_embedded_leaves_no_index(tmp_path: Path) -> None:
    nothing = Embedded("nothing", np.full((3, 256), np.nan, np.float32), np.zeros((3, 2)))
    with pytest.raises(DataError, match="found no embedded cell"):
        build_index(tmp_path / "out", [lambda: nothing], "a" * 64, IndexConfig())
    assert not (tmp_path / "out").exists()


def test_the_kind_follows_from_the_size() -> None:
    assert [kind_for(n) for n in (10, 10**6, 88 * 10**6)] == ["flat", "hnsw", "ivfpq"]


def test_a_plan_measures_what_vectors_take() -> None:
    flat, hnsw, ivfpq = plan_index(88_000_000)
    assert ivfpq.is_chosen
    assert flat.bytes_per_vector == 512
    assert 512 + 256 < hnsw.bytes_per_vector < 512 + 320  # float16 vector and some 66 links of 4 bytes
    assert ivfpq.bytes_per_vector == pytest.approx(64 + 8, abs=0.5)
    assert flat.disk_bytes < ivfpq.disk_bytes < hnsw.disk_bytes
