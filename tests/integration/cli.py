"""`stofm ...` run inside the test process, as a person would type it, and what it left on disk."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from omegaconf import OmegaConf
from transformers.utils.logging import disable_progress_bar

from stofm.durable import tree_sha256
from tools.cli import main


@dataclass(frozen=True)
class Outcome:
    """Exit code and screen of one command."""

    code: int
    stdout: str
    stderr: str


def stofm(*words: object) -> Outcome:
    """Run one command; what it changes for the whole process (warnings, logging, environment) is put back."""
    disable_progress_bar()  # a process of its own reads TQDM_DISABLE; in this one tqdm was imported long ago
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["stofm", *map(str, words)]),
        mock.patch.dict(os.environ),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        finally:
            logging.disable(logging.NOTSET)
    return Outcome(code, out.getvalue(), err.getvalue())


def succeed(*words: object) -> str:
    """Run one command that must end well; returns what it printed."""
    outcome = stofm(*words)
    assert outcome.code == 0, outcome
    return outcome.stdout


def refused(*words: object) -> str:
    """Run one command that must end in one line and exit code 2; returns the line."""
    outcome = stofm(*words)
    assert outcome.code == 2, outcome
    assert outcome.stderr.count("\n") == 1, outcome.stderr
    assert outcome.stderr.startswith("error: ")
    assert "Traceback" not in outcome.stdout
    return outcome.stderr.rstrip()


def write_yaml(path: Path, settings: Mapping) -> Path:
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(dict(settings))), encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file below a folder."""
    return tree_sha256(folder) if folder.is_dir() else {}
