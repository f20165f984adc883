"""Errors that a user can act on: *where: what was found; what was expected. What to do.*"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class StofmError(Exception):
    """Base of every error that the command line shows in one line, without a traceback; it ends with `exit_code`."""

    exit_code = 2

    def __str__(self) -> str:
        """The address notes, outermost first, in front of the message."""
        return ": ".join([*reversed(getattr(self, "__notes__", [])), super().__str__()])


class ConfigError(StofmError):
    """A setting, an argument or a folder is not what the command needs."""


class DataError(StofmError):
    """A slice or an embedding breaks its contract."""


class BadSlice(DataError):
    """One slice cannot be used, whatever the others are: a build sets it aside and goes on.

    Attributes
    ----------
    code : str
        Name of the fault in capitals (``NO_COORDS``); programs and records of a build go by it.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[BadSlice], tuple[str, str]]:
        return type(self), (self.code, self.args[0])


class EnvironmentFault(StofmError):
    """The machine, not the input, keeps a command from its end: a full disk, a lost mount, too little memory."""


class FormatError(StofmError):
    """A file is not in the format that its place promises, or is damaged."""


class CheckpointError(StofmError):
    """A checkpoint is damaged, or belongs to another run, model or vocabulary."""


class Stopped(StofmError):
    """Training was told to stop by SIGTERM or SIGUSR1 and wrote a checkpoint; the same command goes on.

    Exit code 75 (EX_TEMPFAIL of sysexits.h): a batch script queues the job again on it, and on no other code.
    """

    exit_code = 75


@contextmanager
def located(address: str) -> Iterator[None]:
    """Put `address` in front of any `StofmError` that passes through."""
    try:
        yield
    except StofmError as error:
        error.add_note(address)
        raise


def one_line(what: object) -> str:
    """Return what an error, or any text, says, on one line."""
    return " ".join(str(what).split())
