"""The truth of a slice: comes back as it was, in the same bytes whenever it is written."""

from __future__ import annotations

import zipfile

import anndata
import numpy as np
import pytest
from scipy.sparse import csr_matrix

from corpus.truth import SliceTruth, read_truth, write_truth
from stofm.errors import FormatError


def truth(largest: int = 9) -> SliceTruth:
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.5, (30, 12))
    counts[3, 4] = largest
    return SliceTruth(
        slice_id="made_up",
        counts=csr_matrix(counts.astype(np.float32)),
        human_ids=np.array([f"ENSG{number:011d}" for number in range(12)]),
        symbols=np.array([f"Sym-{number}" for number in range(12)]),
        coords_um=rng.normal(0, 1e4, (30, 2)),
        labels={"cell_type": rng.choice(["a", "b"], 30), "region": np.array(["", *["tumour/edge 1"] * 29])},
        source={"technology": "simulated", "um_per_unit": 0.325, "species": "mouse"},
        source_rows=np.arange(30)[::-1] * 2,
    )


@pytest.mark.parametrize(("largest", "dtype"), [(9, np.uint16), (65_535, np.uint16), (65_536, np.uint32)])
def test_a_slice_comes_back_as_it_was(tmp_path, largest, dtype):
    write_truth(tmp_path / "new" / "made_up.zarr.zip", truth(largest))
    again, original = read_truth(tmp_path / "new" / "made_up.zarr.zip"), truth(largest)
    assert again.counts.dtype == dtype
    np.testing.assert_array_equal(again.counts.toarray(), original.counts.toarray())
    np.testing.assert_array_equal(again.coords_um, original.coords_um)
    assert again.human_ids.tolist() == original.human_ids.tolist()
    assert again.symbols.tolist() == original.symbols.tolist()
    assert {name: values.tolist() for name, values in again.labels.items()} == {name: values.tolist() for name, values in original.labels.items()}
    assert (again.slice_id, dict(again.source)) == ("made_up", original.source)
    assert again.source_rows.tolist() == original.source_rows.tolist()


def test_the_same_slice_is_the_same_bytes_and_leaves_nothing_else(tmp_path):
    for name in ("first", "second"):
        write_truth(tmp_path / name / "made_up.zarr.zip", truth())
    first, second = ((tmp_path / name / "made_up.zarr.zip").read_bytes() for name in ("first", "second"))
    assert first == second
    assert [path.name for path in (tmp_path / "first").iterdir()] == ["made_up.zarr.zip"]


def test_any_reader_of_anndata_opens_what_is_in_the_zip(tmp_path):
    write_truth(tmp_path / "made_up.zarr.zip", truth())
    with zipfile.ZipFile(tmp_path / "made_up.zarr.zip") as archive:
        assert {(info.compress_type, info.date_time) for info in archive.infolist()} == {(zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0))}
        archive.extractall(tmp_path / "made_up.zarr")
    assert anndata.read_zarr(tmp_path / "made_up.zarr").shape == (30, 12)


@pytest.mark.parametrize("damage", ["missing", "no zip", "cut off", "other zip"])
def test_a_truth_that_is_damaged_is_refused(tmp_path, damage):
    path = tmp_path / "made_up.zarr.zip"
    if damage == "no zip":
        path.write_bytes(b"PK no zip")
    elif damage == "cut off":
        write_truth(path, truth())
        path.write_bytes(path.read_bytes()[:-500])
    elif damage == "other zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("hello.txt", "hello")
    with pytest.raises(FormatError, match=r"made_up\.zarr\.zip: .*Build the corpus again"):
        read_truth(path)


def test_a_failed_write_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "made_up.zarr.zip"
    write_truth(path, truth())
    before = path.read_bytes()

    def planted(*_, **__):
        raise RuntimeError("planted")

    monkeypatch.setattr("corpus.truth._zip_folder", planted)
    with pytest.raises(RuntimeError, match="planted"):
        write_truth(path, truth(7))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["made_up.zarr.zip"]
