"""Curves for people: TensorBoard always, Weights & Biases or MLflow on request, all through accelerate's trackers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from stofm.errors import ConfigError

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PROJECT = "stofm"


def require_trackers(names: Sequence[str]) -> None:
    """Raise `ConfigError` unless the packages behind these trackers are installed."""
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(
                f"trackers: found no package {name!r}; expected it to be installed. Run `pip install {name}`, or take it out of `trackers`."
            )


class Trackers:
    """The trackers of one stage, from the step on at which it starts or goes on; nothing in a process that does not write."""

    def __init__(self, folder: Path, stage: str, names: Sequence[str], *, start: int, is_writer: bool) -> None:
        self.stage = stage
        self._trackers: list[GeneralTracker] = _started(folder, stage, names, start) if is_writer else []

    def log(self, step: int, measures: Mapping[str, Any]) -> None:
        """Hand over what was measured at a step; numbers alone, those inside of mappings as ``mapping/name``."""
        for tracker in self._trackers:
            tracker.log(flat(self.stage, measures), step=step)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for tracker in self._trackers:
            tracker.finish()


def _started(folder: Path, stage: str, names: Sequence[str], start: int) -> list[GeneralTracker]:
    from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker

    of_name = {
        "tensorboard": lambda: TensorBoardTracker(stage, folder / "tensorboard", purge_step=start + 1),  # steps after it are trained again
        "wandb": lambda: WandBTracker(PROJECT, name=f"{folder.name}-{stage}", dir=str(folder)),
        "mlflow": lambda: MLflowTracker(PROJECT, run_name=f"{folder.name}-{stage}"),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the trackers' own libraries
        started = [of_name[name]() for name in ("tensorboard", *names)]
        for tracker in started:
            tracker.start()
    return started


def flat(prefix: str, measures: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among measures by their full names: ``se2/losses/mcm``."""
    found: dict[str, float] = {}
    for name, value in measures.items():
        if isinstance(value, Mapping):
            found |= flat(f"{prefix}/{name}", value)
        elif isinstance(value, int | float):
            found[f"{prefix}/{name}"] = value
    return found
