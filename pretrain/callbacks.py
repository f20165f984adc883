"""What a caller of training may hear of while it runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from corpus.store import Corpus
from stofm.cell_encoder import CellEncoder
from stofm.se2_transformer import SE2Transformer


@dataclass(frozen=True)
class Progress:
    """What a step reports."""

    stage: str
    step: int
    n_steps: int
    losses: dict[str, float]


Probe = Callable[[Corpus, CellEncoder, SE2Transformer], dict[str, float]]


@dataclass(frozen=True, eq=False)
class Callbacks:
    """What the caller wants to hear of: called on the first process only."""

    on_step: Callable[[Progress], None] = lambda _: None
    track: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()
    report: Callable[[str], None] = lambda _: None
    probe: Probe = lambda *_: {}  # how much labels can be read off the embeddings of validation slices


SILENT = Callbacks()
