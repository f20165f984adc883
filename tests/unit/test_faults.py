"""Whose fault an error is: only a slice's own faults may set it aside."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from corpus.faults import fault_of
from stofm.errors import BadSlice, ConfigError, DataError


def raised(make: Callable[[], None]) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is what the tests are about
        make()
    return caught.value


def wrapped_by_a_reader() -> None:
    try:
        raise OSError(errno.EIO, "Input/output error")
    except OSError as error:
        raise DataError("not readable") from error


def lost_in_cleaning_up() -> None:
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError:
        raise ValueError("write to closed file")  # noqa: B904 - as a library does that knows no better


def told_by_hdf5() -> None:
    raise OSError("Can't synchronously read data (file read failed: errno = 116, error message = 'Stale file handle')")


def out_of_memory() -> None:
    raise MemoryError


def bad_slice() -> None:
    raise BadSlice("NO_COORDS", "no coordinates")


def bad_data() -> None:
    raise DataError("not readable")


def bad_settings() -> None:
    raise ConfigError("unknown")


def truncated_file() -> None:
    raise OSError("Unable to synchronously open file (truncated file: eof = 5000)")


FAULTS = {
    "EIO behind a DataError": (wrapped_by_a_reader, "environment", "EIO"),
    "ENOSPC before another error": (lost_in_cleaning_up, "environment", "ENOSPC"),
    "errno in the text of HDF5": (told_by_hdf5, "environment", "ESTALE"),
    "MemoryError": (out_of_memory, "environment", "ENOMEM"),
    "BadSlice": (bad_slice, "slice", "NO_COORDS"),
    "DataError": (bad_data, "slice", "BAD_SLICE"),
    "ConfigError": (bad_settings, "settings", "ConfigError"),
    "any other": (truncated_file, "bug", "OSError"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_given_to_whom_it_belongs(name):
    make, kind, code = FAULTS[name]
    fault = fault_of(raised(make))
    assert (fault.kind, fault.code) == (kind, code)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.ESTALE], ids=errno.errorcode.get)
def test_every_fault_of_the_machine_is_known(number):
    assert fault_of(OSError(number, "")).code == errno.errorcode[number]
