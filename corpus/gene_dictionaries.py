"""Tables of two columns that others publish (symbol -> id, mouse -> human id, gene -> token, gene -> median): CSV, or pickles read inertly."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from stofm.errors import ConfigError, FormatError

Number = int | float


def read_pairs(path: Path, *, setting: str) -> list[tuple[str, str | Number]]:
    """Read the rows of a table of two columns, in its order; rows with an empty entry are left out.

    A CSV has a header, before which lines may start with "#". A pickle (``.pkl``, ``.pickle``) holds one dictionary of names to
    names or numbers; nothing in it is executed.

    Raises
    ------
    ConfigError
        If there is no such file, or it has other columns; `setting` is the one to correct.
    FormatError
        If it is damaged, or a pickle of anything else.
    """
    if not path.is_file():
        raise ConfigError(f"gene table {path}: no such file; expected a CSV of two columns, or a pickled dictionary. Correct `{setting}`.")
    pairs = _unpickle(path) if path.suffix in (".pkl", ".pickle") else _read_csv(path, setting)
    return [(key, value) for key, value in pairs if key and value not in ("", None)]


def stated_release(path: Path) -> str | None:
    """Return what a CSV says of itself in a first line that starts with "#" ("# Ensembl 113"), if it does."""
    with path.open("rb") as file:
        line = file.readline(200)
    return line[1:].decode("utf-8", "replace").strip() or None if line.startswith(b"#") else None


def _read_csv(path: Path, setting: str) -> list[tuple[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(line for line in file if not line.startswith("#")) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"gene table {path}: {error}; expected a CSV in UTF-8. Correct `{setting}`.") from error
    n_columns = next((len(row) for row in rows if len(row) != 2), 2 if rows else 0)
    if n_columns != 2:
        raise ConfigError(f"gene table {path}: found {n_columns} columns; expected two, under a header. Correct `{setting}`.")
    return [(key.strip(), value.strip()) for key, value in rows[1:]]


def _unpickle(path: Path) -> list[tuple[str, str | Number]]:
    with path.open("rb") as file:
        try:
            found = _InertUnpickler(file).load()
        except FormatError as error:
            error.add_note(f"gene table {path}")
            raise
        except Exception as error:  # a damaged pickle may ask for anything, so nearly any error can come of it
            raise FormatError(f"gene table {path}: no readable pickle ({' '.join(str(error).split())[:80]}); expected a dictionary.") from error
    if type(found) is not dict or not all(type(key) is str and type(value) in (str, int, float) for key, value in found.items()):
        raise FormatError(f"gene table {path}: found {type(found).__name__}; expected a dictionary of names to names or numbers. Convert it to CSV.")
    return list(found.items())


class _InertUnpickler(pickle.Unpickler):
    """Unpickles dictionaries, text, numbers and numpy's scalars; any other name in the file is refused, before anything of it is called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "dtype"):
            return _ScalarType
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "scalar":
            return _Scalar
        raise FormatError(f"the pickle asks for {module}.{name}; expected names and numbers only. Nothing was executed; convert the file to CSV.")


class _ScalarType:
    """Stands for `numpy.dtype` of a number."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"):
            raise FormatError(f"the pickle holds numpy values of type {code!r}; expected numbers. Convert the file to CSV.")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.dtype = np.dtype(f"{state[1]}{self.dtype.str[1:]}")


class _Scalar:
    """Stands for the function that makes a numpy scalar of bytes."""

    def __new__(cls, kind: _ScalarType, raw: bytes) -> Number:  # type: ignore[misc]  # a number takes its place
        return np.frombuffer(raw, kind.dtype, count=1)[0].item()

    def __setstate__(self, state: object) -> None:
        raise FormatError("the pickle sets the state of a number; expected names and numbers only. Convert the file to CSV.")
