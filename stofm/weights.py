"""Files of weights, safetensors or torch's own, read without executing anything in them."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from zipfile import ZipFile, is_zipfile

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stofm.errors import CheckpointError, one_line


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read named tensors onto the CPU; what the file is, is told by its name: ``.safetensors``, or anything else for ``torch.save``.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, asks for code to be executed, or holds anything but tensors with names.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected weights. Correct the path.")
    try:
        found = load_file(path) if path.suffix == ".safetensors" else _load_inertly(path)
    except Exception as error:  # a damaged pickle may ask for anything, so nearly any error can come of it
        raise CheckpointError(f"{path}: {_reason(error)}; expected a whole file of weights and nothing else. Use the original file.") from error
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path}: found {_kind(found)}; expected tensors with names. Save the state dict of the model alone.")
    return {str(name): value for name, value in found.items()}


def load_weights(module: nn.Module, path: Path, *, part_of: Callable[[Tensor, Tensor | None], Tensor] = lambda whole, _: whole) -> None:
    """Load a file of weights into a module; `CheckpointError` if it is damaged or of another shape.

    `part_of` is given every tensor and the module's own of that name, and returns what goes into the module.
    """
    own = module.state_dict()
    weights = {name: part_of(whole, own.get(name)) for name, whole in read_weights(path).items()}
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {one_line(error)[:150]}; expected the weights of this model. Use a matching pair.") from error


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return one sha256 of named tensors: equal for equal names and numbers, wherever they lie."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _load_inertly(path: Path) -> object:
    if is_zipfile(path):
        with ZipFile(path) as archive:
            damaged = archive.testzip()  # torch itself compares no checksums
        if damaged:
            raise ValueError(f"{damaged} in it does not match its checksum")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    """What was found, in one line; torch's own words for a pickle that it refuses tell how to run it all the same."""
    if isinstance(error, UnpicklingError):
        asked = re.search(r"GLOBAL (\S+)", str(error))
        return f"it asks for {asked[1]} to be executed, which was not done" if asked else "it is no readable pickle"
    return one_line(error)[:150] or "it ends too early"


def _kind(found: object) -> str:
    if not isinstance(found, dict) or not found:
        return "nothing" if not found else type(found).__name__
    name, value = next((name, value) for name, value in found.items() if not isinstance(value, Tensor))
    return f"{type(value).__name__} under {name!r}"
