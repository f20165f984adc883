"""The losses of a run as JSON lines, one line a logged step, as if the run had never been stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stofm.durable import write_text


class RunLog:
    """Append-only, except that a resumed run first drops the lines past the checkpoint it goes on from."""

    def __init__(self, path: Path, *, is_writer: bool) -> None:
        self.path, self.is_writer = path, is_writer

    def rewind(self, stage: str, step: int) -> None:
        """Keep what was logged in other stages, and in this one up to `step`."""
        if self.is_writer:
            kept = [line for line in read_run_log(self.path) if line["stage"] != stage or line["step"] <= step]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, stage: str, step: int, losses: dict[str, float], **measures: Any) -> None:
        """Append one line; floats are written so that they read back the same, to the bit."""
        if self.is_writer:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"stage": stage, "step": step, "losses": losses, **measures}) + "\n")


def read_run_log(path: Path) -> list[dict]:
    """Return the logged steps; a last line cut off by a kill is left out."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    whole = []
    for line in lines:
        try:
            whole.append(json.loads(line))
        except ValueError:
            break
    return whole


def steps_of(lines: list[dict]) -> dict[str, int]:
    """Return the last step of every stage that was logged, in their order."""
    return {line["stage"]: line["step"] for line in lines}
