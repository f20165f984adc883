"""What can go wrong while files are read: the slice is bad, or the machine is."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stofm.errors import BadSlice, StofmError

# Faults of disk, memory and network: the same file may read well later, so they are never laid on the slice.
_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT}


@contextmanager
def reading(what: str, *, expected: str, remedy: str) -> Iterator[None]:
    """Turn whatever a library raises on a damaged file into `BadSlice` ``INPUT_UNREADABLE``; faults of the machine pass through."""
    try:
        yield
    except StofmError:
        raise
    except Exception as error:  # h5py, pandas, anndata's registry of encodings: they raise what they like, some of it from private modules
        if _is_of_machine(error):
            raise
        reason = " ".join(str(error).split())[:120]
        raise BadSlice("INPUT_UNREADABLE", f"not readable as {what} ({reason}); expected {expected}. {remedy}") from error


def _is_of_machine(error: BaseException | None) -> bool:
    """Tell whether a fault of the machine stands anywhere behind an error; libhdf5 names its number in the text alone."""
    while error is not None:
        stated = re.search(r"\berrno = (\d+)", str(error))
        number = int(stated[1]) if stated else error.errno if isinstance(error, OSError) else None
        if number in _MACHINE or isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


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
