"""What can go wrong while files are read: the slice is bad, or the machine is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from corpus.faults import environment_code
from stofm.errors import BadSlice, StofmError, one_line


@contextmanager
def reading(what: str, *, expected: str, remedy: str) -> Iterator[None]:
    """Turn whatever a library raises on a damaged file into `BadSlice` ``INPUT_UNREADABLE``; faults of the machine pass through."""
    try:
        yield
    except StofmError:
        raise
    except Exception as error:  # h5py, pandas, anndata's registry of encodings: they raise what they like, some of it from private modules
        if environment_code(error) is not None:
            raise
        reason = one_line(error)[:120]
        raise BadSlice("INPUT_UNREADABLE", f"not readable as {what} ({reason}); expected {expected}. {remedy}") from error


def find_file(folder: Path, *patterns: str) -> Path:
    """Return the file or folder that matches the first pattern with a match; `BadSlice` if there is none, or a choice."""
    for pattern in patterns:
        found = sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(path.relative_to(folder)) for path in found[:5])
            raise BadSlice("LAYOUT_AMBIGUOUS", f"found {len(found)} files like {pattern!r} ({names}); expected one. Give the folder of one of them.")
    raise BadSlice("LAYOUT_UNKNOWN", f"found no file like {' or '.join(map(repr, patterns))}; expected one. Fetch the missing file.")
