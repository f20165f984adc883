"""What the command line shows while it works: one line a thing done, a bar for long work, one line for an error."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status

from stofm.errors import one_line

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def is_main_process() -> bool:
    """Tell whether this process is the one of several that may print."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Print one line."""
    if is_main_process():
        console.print(text, markup=False)


def show_error(error: Exception) -> None:
    """Print an error as one line."""
    errors.print("error: " + one_line(error), markup=False, style="red")


@contextmanager
def tracking(text: str) -> Iterator[None]:
    """Show what is being done while the block runs, and that it was done when it ended well."""
    if not is_main_process():
        yield
        return
    with Status(text, console=console):
        yield
    console.print(f"  {text}", markup=False, style="dim")


@contextmanager
def progress(text: str, total: int) -> Iterator[Callable[[str], None]]:
    """Show how many of `total` things are done while the block runs; it calls what it is given with the name of each one done."""
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[last]}"))
    is_shown = is_main_process() and console.is_terminal
    with Progress(*columns, console=console, disable=not is_shown, transient=True) as bar:
        task = bar.add_task(text, total=total, last="")
        yield lambda name: bar.update(task, advance=1, last=name)
    if is_main_process():
        console.print(f"  {text}: {total}", markup=False, style="dim")


@contextmanager
def step_bar() -> Iterator[Progress]:
    """A progress bar for training steps."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[losses]}"))
    with Progress(*columns, console=console, disable=not is_main_process() or not console.is_terminal) as progress:
        yield progress


def quiet_libraries() -> None:
    """Keep the libraries' own banners, bars and deprecation notices off the screen; `--debug` lets them speak."""
    if "--debug" in sys.argv:
        return
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
