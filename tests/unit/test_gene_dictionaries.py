"""Tables of others: read as they are from CSV and pickle, and never executed."""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.gene_dictionaries import read_pairs, stated_release
from stofm.errors import ConfigError, FormatError, StofmError

PAIRS = {"<pad>": 0, "ENSG1": 2, "ENSG2": 2.5, "ACTB": "ENSG3"}


class TouchesAFile:
    """A pickle of it makes a file when it is loaded as pickles usually are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def written(folder: Path, value: object, *, protocol: int = 4) -> Path:
    (folder / "table.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
    return folder / "table.pkl"


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickled_dictionary_is_read(tmp_path, protocol):
    assert dict(read_pairs(written(tmp_path, PAIRS, protocol=protocol), setting="genes.medians")) == PAIRS


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f8", "i2", "i8", "<u4", "u1"])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_numpy_scalars_are_numbers(tmp_path, dtype, protocol):
    value = np.array([3], dtype=dtype)[0]
    assert read_pairs(written(tmp_path, {"ENSG1": value}, protocol=protocol), setting="x") == [("ENSG1", 3)]


def test_scalars_as_older_numpy_wrote_them_are_read(tmp_path):
    blob = pickle.dumps({"ENSG1": np.float64(2.5)}, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "table.pkl").write_bytes(blob)
    assert read_pairs(tmp_path / "table.pkl", setting="x") == [("ENSG1", 2.5)]


def test_a_pickle_that_would_touch_a_file_is_refused_before_it_does(tmp_path):
    path = written(tmp_path, {"ENSG1": TouchesAFile(tmp_path / "touched")})
    with pytest.raises(FormatError, match=r"table\.pkl: the pickle asks for pathlib\.Path.*Nothing was executed") as caught:
        read_pairs(path, setting="x")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "touched").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "touched").exists()


def pickled_call(module: str, name: str, argument: str) -> bytes:
    return f"c{module}\n{name}\n(S'{argument}'\ntR.".encode()


EVIL = {
    "os.system": pickled_call("os", "system", "true"),
    "eval": pickled_call("builtins", "eval", "1"),
    "getattr": pickled_call("builtins", "getattr", "x"),
    "numpy loader": pickled_call("numpy", "load", "/dev/null"),
    "objects as scalars": pickle.dumps({"a": np.array([{}], dtype=object)[:1]}),
    "object dtype": b"cnumpy\ndtype\n(S'O8'\ntR.",
    "a number with state": b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'f8'\ntRC\x08\0\0\0\0\0\0\0\0tR}b.",
    "a class with state": b"cnumpy\ndtype\n}b.",
    "attributes": b"\x80\x04cnumpy.core.multiarray\nscalar\n.",
    "dotted name": pickle.dumps({"a": dict.fromkeys}, protocol=4),
}


@pytest.mark.parametrize("blob", EVIL.values(), ids=EVIL)
def test_whatever_else_a_pickle_asks_for_is_refused(tmp_path, blob):
    pickletools.dis(blob, out=io.StringIO())  # a valid pickle
    (tmp_path / "table.pkl").write_bytes(blob)
    with pytest.raises(FormatError, match=r"gene table .*table\.pkl: .*; expected"):
        read_pairs(tmp_path / "table.pkl", setting="x")


@pytest.mark.parametrize("value", [["a"], {1: 2}, {"a": [1]}, {"a": {"b": 1}}, {"a": b"x"}, {"a": True}, "a", 3, {("a",): 1}], ids=str)
def test_a_pickle_of_anything_but_names_and_numbers_is_refused(tmp_path, value):
    with pytest.raises(FormatError, match="expected a dictionary of names to names or numbers"):
        read_pairs(written(tmp_path, value), setting="x")


@given(st.data())
def test_a_damaged_pickle_is_refused_or_read_but_never_crashes(tmp_path_factory, data):
    blob = bytearray(pickle.dumps({"ENSG1": np.float64(2.5), "ENSG2": 3}, protocol=data.draw(st.integers(2, 5))))
    blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "table.pkl"
    path.write_bytes(blob[: data.draw(st.integers(0, len(blob)))])
    with contextlib.suppress(StofmError):
        assert all(isinstance(key, str) for key, _ in read_pairs(path, setting="x"))


def test_a_csv_is_read_in_its_order_without_empty_entries(tmp_path):
    (tmp_path / "table.csv").write_text("\ufeff# Ensembl 113\nsymbol,id\nB,2\n\nA, 1\nC,\n,3\nB,4\n", encoding="utf-8")
    assert read_pairs(tmp_path / "table.csv", setting="x") == [("B", "2"), ("A", "1"), ("B", "4")]


@pytest.mark.parametrize(("text", "release"), [("# Ensembl 113\na,b\n", "Ensembl 113"), ("a,b\n1,2\n", None), ("#\na,b\n", None), ("", None)])
def test_a_table_may_state_its_release(tmp_path, text, release):
    (tmp_path / "table.csv").write_text(text)
    assert stated_release(tmp_path / "table.csv") == release


@pytest.mark.parametrize(("content", "found"), [(b"a,b,c\n1,2,3\n", "found 3 columns"), (b"", "found 0 columns"), (b"a,b\n1\n", "found 1 columns")])
def test_another_number_of_columns_is_refused(tmp_path, content, found):
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"table\.csv: {found}; expected two.*Correct `genes.tables.orthologs`"):
        read_pairs(tmp_path / "table.csv", setting="genes.tables.orthologs")


def test_another_encoding_and_a_missing_file_are_refused(tmp_path):
    (tmp_path / "table.csv").write_bytes(b"a,b\n\xff\xfe,2\n")
    with pytest.raises(FormatError, match="expected a CSV in UTF-8"):
        read_pairs(tmp_path / "table.csv", setting="x")
    with pytest.raises(ConfigError, match=r"none\.csv: no such file; .*Correct `genes.symbols`"):
        read_pairs(tmp_path / "none.csv", setting="genes.symbols")
