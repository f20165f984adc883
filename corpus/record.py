"""A record: the arrays of one sub-slice as safetensors bytes, written in one order and read without copying."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save

from stofm.errors import FormatError

SUFFIX = "safetensors"
DTYPES = {"BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "F16": "<f2", "U32": "<u4", "I32": "<i4", "F32": "<f4",
          "U64": "<u8", "I64": "<i8", "F64": "<f8"}  # fmt: skip

Arrays = Mapping[str, np.ndarray]
Record = tuple[Arrays, int, int]  # arrays, n_cells, gene tokens of the longest cell (0 where there are none)


def record_key(slice_id: str, number: int) -> str:
    """Return the name of a record: its slice and its number there; no dot, which ends a key in webdataset."""
    return f"{slice_id}-{number:05d}"


def pack_record(arrays: Arrays) -> bytes:
    """Return the bytes of a record; equal arrays give equal bytes."""
    return save(dict(sorted(arrays.items())))


def parse_record(buffer: Any, start: int = 0, nbytes: int | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of a record as views of `buffer`, which stay valid as long as they live.

    Parameters
    ----------
    buffer : bytes, memoryview or mmap
    start, nbytes : int
        Where the record lies in it; default: all of it.

    Raises
    ------
    FormatError
        If the bytes are no safetensors record, or an array lies outside of it.
    """
    nbytes = len(buffer) - start if nbytes is None else nbytes
    try:
        n_header = int.from_bytes(buffer[start : start + 8], "little")
        if n_header > nbytes - 8:
            raise FormatError(f"found a header of {n_header} bytes in a record of {nbytes}; expected a safetensors record.")
        header = json.loads(buffer[start + 8 : start + 8 + n_header])
        header.pop("__metadata__", None)
        arrays = {}
        for name, field in header.items():
            dtype, shape, (begin, end) = np.dtype(DTYPES[field["dtype"]]), field["shape"], field["data_offsets"]
            if not 0 <= begin <= end <= nbytes - 8 - n_header or math.prod(shape) * dtype.itemsize != end - begin:
                raise FormatError(f"array {name!r}: bytes {begin} to {end} do not hold {shape} {dtype}; expected a safetensors record.")
            arrays[name] = np.frombuffer(buffer, dtype, math.prod(shape), start + 8 + n_header + begin).reshape(shape)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{type(error).__name__} {error}; expected a safetensors record.") from error
    return arrays
