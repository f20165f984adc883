"""`stofm ...` that notes what its process holds of the trained model before every update, in bytes, in FOLDER/held-<rank>.jsonl.

python sharded.py FOLDER WORDS...
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

import pretrain.engine
from tools.cli import main


def held(tensors: Iterable[torch.Tensor]) -> int:
    return sum((one.to_local() if isinstance(one, DTensor) else one).nbytes for one in tensors)


if __name__ == "__main__":
    folder, *words = sys.argv[1:]
    notes = Path(folder) / f"held-{os.environ['RANK']}.jsonl"
    require_finite, set_learning_rate = pretrain.engine._require_finite, pretrain.engine.set_learning_rate
    stage: Any = None

    def remember(values: Any, one: Any, *rest: Any) -> None:
        global stage
        stage = one
        require_finite(values, one, *rest)

    def note(optimizer: Any, lr: float) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        line = {
            "stage": stage.name,
            "whole": sum(parameter.nbytes for parameter in parameters),
            "weights": held(parameters),
            "gradients": held(parameter.grad for parameter in parameters),
            "moments": held(value for state in optimizer.state.values() for value in state.values() if value.ndim),
            "beside": held(stage.model.parameters()),
        }
        with notes.open("a") as file:
            file.write(json.dumps(line) + "\n")
        set_learning_rate(optimizer, lr)

    pretrain.engine._require_finite, pretrain.engine.set_learning_rate = remember, note  # type: ignore[assignment]
    sys.argv = ["stofm", *words]
    main()
