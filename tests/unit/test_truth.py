"""The truth of a slice: comes back as it was, in the same bytes whenever it is written."""

from __future__ import annotations

import zipfile
from dataclasses import replace

import anndata
import numpy as np
import pytest
from scipy.sparse import csr_matrix, vstack
from zarr.storage import ZipStore

from corpus.truth import SliceTruth, iter_counts, read_truth, write_truth
from stofm.errors import DataError, FormatError


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
        dropped={"no_counts": 3, "not_finite": 1},
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
    assert again.dropped == original.dropped


@pytest.mark.parametrize("n_cells", [1, 7, 30, 1000])
def test_blocks_of_rows_are_the_whole(tmp_path, n_cells):
    write_truth(tmp_path / "made_up.zarr.zip", truth())
    blocks = list(iter_counts(tmp_path / "made_up.zarr.zip", n_cells=n_cells))
    assert [block.shape[0] for block in blocks[:-1]] == [n_cells] * (len(blocks) - 1)
    np.testing.assert_array_equal(vstack(blocks).toarray(), truth().counts.toarray())
    assert {block.dtype for block in blocks} == {np.dtype(np.uint16)}


@pytest.mark.parametrize("chunk", [7, 40, 100])
def test_arrays_longer_than_a_chunk_come_back(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("corpus.truth.CHUNK", chunk)
    write_truth(tmp_path / "made_up.zarr.zip", truth())
    np.testing.assert_array_equal(read_truth(tmp_path / "made_up.zarr.zip").counts.toarray(), truth().counts.toarray())


def test_stored_zeros_and_unsorted_columns_are_mended_in_the_file_alone(tmp_path):
    counts = csr_matrix((np.array([2.0, 0.0, 5.0]), np.array([3, 1, 0]), np.array([0, 3])), shape=(1, 4))
    one = truth()
    one = replace(
        one, counts=counts, coords_um=one.coords_um[:1], labels={}, source_rows=np.arange(1), human_ids=one.human_ids[:4], symbols=one.symbols[:4]
    )
    write_truth(tmp_path / "made_up.zarr.zip", one)
    again = read_truth(tmp_path / "made_up.zarr.zip").counts
    assert (again.indices.tolist(), again.data.tolist()) == ([0, 3], [5, 2])
    assert counts.nnz == 3


def test_a_label_with_the_name_of_a_column_of_ours_is_refused(tmp_path):
    with pytest.raises(DataError, match="found a label named 'n_counts'"):
        write_truth(tmp_path / "made_up.zarr.zip", replace(truth(), labels={"n_counts": np.array(["a"] * 30)}))


def test_the_same_slice_is_the_same_bytes_and_leaves_nothing_else(tmp_path):
    for name in ("first", "second"):
        write_truth(tmp_path / name / "made_up.zarr.zip", truth())
    first, second = ((tmp_path / name / "made_up.zarr.zip").read_bytes() for name in ("first", "second"))
    assert first == second
    assert [path.name for path in (tmp_path / "first").iterdir()] == ["made_up.zarr.zip"]


def test_any_reader_of_anndata_opens_it(tmp_path):
    write_truth(tmp_path / "made_up.zarr.zip", truth())
    with zipfile.ZipFile(tmp_path / "made_up.zarr.zip") as archive:
        assert {(info.compress_type, info.date_time) for info in archive.infolist()} == {(zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0))}
        archive.extractall(tmp_path / "made_up.zarr")
    with ZipStore(tmp_path / "made_up.zarr.zip", mode="r") as store:
        in_zip = anndata.read_zarr(store)
    unpacked = anndata.read_zarr(tmp_path / "made_up.zarr")
    for table in (in_zip, unpacked):
        np.testing.assert_array_equal(table.X.toarray(), truth().counts.toarray())
        assert table.obs["n_counts"].tolist() == truth().counts.sum(axis=1).A1.tolist()
        assert table.obs["n_genes"].tolist() == np.diff(truth().counts.indptr).tolist()


CHUNKS = ["X/data/c/0", "X/indptr/c/0", "obsm/spatial/c/0/0", "obs/cell_type/codes/c/0", "var/_index/c/0"]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_missing_chunk_is_not_read_as_zeros(tmp_path, chunk):
    write_truth(tmp_path / "whole.zarr.zip", truth())
    with zipfile.ZipFile(tmp_path / "whole.zarr.zip") as whole, zipfile.ZipFile(tmp_path / "made_up.zarr.zip", "w") as damaged:
        assert chunk in whole.namelist()
        for name in whole.namelist():
            if name != chunk:
                damaged.writestr(name, whole.read(name))
    with pytest.raises(FormatError, match=rf"made_up\.zarr\.zip: chunk {chunk} is missing"):
        read_truth(tmp_path / "made_up.zarr.zip")
    with pytest.raises(FormatError, match=rf"chunk {chunk} is missing"):
        list(iter_counts(tmp_path / "made_up.zarr.zip"))


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_flipped_bit_in_a_chunk_is_noticed(tmp_path, chunk):
    path = tmp_path / "made_up.zarr.zip"
    write_truth(path, truth())
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(chunk)
    data = bytearray(path.read_bytes())
    data[member.header_offset + 30 + len(chunk) + member.file_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"made_up\.zarr\.zip: .*Build the corpus again"):
        read_truth(path)


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

    monkeypatch.setattr("corpus.zarr_zip._zip_folder", planted)
    with pytest.raises(RuntimeError, match="planted"):
        write_truth(path, truth(7))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["made_up.zarr.zip"]
