"""Whose fault an error is: the slice's, the machine's, or ours. Only a slice at fault is set aside; the machine's faults are waited for."""

from __future__ import annotations

import errno
import re
import signal
import traceback
from dataclasses import dataclass
from typing import Literal

from stofm.errors import BadSlice, DataError, StofmError, one_line

Kind = Literal["slice", "environment", "settings", "bug"]

ENVIRONMENT_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT)
WITHOUT_CODE = "BAD_SLICE"  # code of a DataError that names none
CRASHED = "CRASHED"
HDF5_ERRNO = re.compile(r"\berrno = (\d+)")  # libhdf5 states it in its text alone


@dataclass(frozen=True)
class Fault:
    """Why a task did not end well.

    Attributes
    ----------
    kind : {"slice", "environment", "settings", "bug"}
        Who has to act: whoever made the slice, whoever runs the machine, whoever wrote the settings, or we.
    code : str
        Name in capitals: of `BadSlice`, of the errno (``ENOSPC``), of the signal (``SIGKILL``), or of the exception.
    detail : str
        One line; a traceback if the kind is "bug".
    """

    kind: Kind
    code: str
    detail: str


def fault_of(error: BaseException) -> Fault:
    """Say whose fault an exception is; an error of the machine behind any other one decides."""
    code = environment_code(error)
    if code is not None:
        return Fault("environment", code, _one_line(error))
    if isinstance(error, DataError):
        return Fault("slice", error.code if isinstance(error, BadSlice) else WITHOUT_CODE, str(error))
    if isinstance(error, StofmError):
        return Fault("settings", type(error).__name__, str(error))
    return Fault("bug", type(error).__name__, "".join(traceback.format_exception(error)))


def fault_of_exit(status: int) -> Fault:
    """Say whose fault it is that a child ended without a word; `status` is its exit code, or minus the signal that ended it."""
    if status == -signal.SIGKILL:
        return Fault("environment", "SIGKILL", "the task was killed, most likely for memory")
    if status < 0:
        name = signal.Signals(-status).name
        return Fault("slice", CRASHED, f"its task was ended by {name}; expected a file that its library can read. Write the slice again.")
    return Fault("bug", CRASHED, f"a task ended with exit code {status} and no result")


def environment_code(error: BaseException) -> str | None:
    """Return the code of a fault of disk, memory or network that stands anywhere behind an error: the same file may read well later."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        link = waiting.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        number = link.errno if isinstance(link, OSError) else None
        if isinstance(link, OSError) and number is None and (found := HDF5_ERRNO.search(str(link))):
            number = int(found[1])
        if number in ENVIRONMENT_ERRNOS:
            return errno.errorcode[number]
        if isinstance(link, MemoryError):
            return "ENOMEM"
        waiting += [link.__cause__, link.__context__]
    return None


def _one_line(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}")
