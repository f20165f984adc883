"""`stofm ...` that is told to stop, as a scheduler would, at a step of a stage.

python stopping.py STAGE STEP WORDS...
"""

from __future__ import annotations

import os
import signal
import sys

import pretrain.engine
from tools.cli import main

if __name__ == "__main__":
    stage, step, *words = sys.argv[1:]
    reduce = pretrain.engine._require_finite

    def stop_at(values: object, one: object, at: int, *rest: object) -> None:
        if (getattr(one, "name", ""), str(at + 1)) == (stage, step):
            os.kill(os.getpid(), signal.SIGTERM)
        reduce(values, one, at, *rest)  # type: ignore[arg-type]

    pretrain.engine._require_finite = stop_at  # type: ignore[assignment]
    sys.argv = ["stofm", *words]
    main()
