"""Cells for a browser: places in the order of a kd-tree, columns as codes of one or two bytes, all packed as base64 of gzip."""

from __future__ import annotations

import base64
import gzip
from dataclasses import dataclass
from typing import Any

import numpy as np

from corpus.slice import FloatArray, IntArray
from downstream.palettes import label_colours

NODE_SIZE = 64  # cells of a leaf
N_LEVELS = 254  # of a number; 0 is missing
LARGEST_SHARE_ABOVE = 0.002  # of the values of a long-tailed number that share the last level


@dataclass(frozen=True, eq=False)
class Column:
    """What cells may be coloured by.

    Attributes
    ----------
    name, title, group : str
        Unique; for people; under which heading it is offered.
    codes : (n,) uint8 or uint16
        0 is missing, then levels.
    levels : [str] or None
        Classes by code, from 1; None for numbers, whose code `c` stands for ``low + (c - 1) * step``.
    is_exact, is_clipped : bool
        Whole numbers, none rounded; the last level holds all that is larger.
    """

    name: str
    title: str
    group: str
    codes: np.ndarray
    levels: list[str] | None = None
    low: float = 0.0
    step: float = 1.0
    n_levels: int = 0
    is_exact: bool = False
    is_clipped: bool = False

    def meta(self, block: str) -> dict[str, Any]:
        """What the page is told of the column; its codes are in `block`."""
        meta: dict[str, Any] = {"name": self.name, "title": self.title, "group": self.group, "block": block, "wide": self.codes.dtype == np.uint16,
                                "n_levels": self.n_levels, "levels": self.levels}  # fmt: skip
        if self.levels is None:
            return meta | {"low": self.low, "step": self.step, "is_exact": self.is_exact, "is_clipped": self.is_clipped}
        counts = np.bincount(self.codes, minlength=self.n_levels + 1).tolist()
        return meta | {"counts": counts, "colours": label_colours(self.n_levels)}


def kd_order(x: FloatArray, y: FloatArray, *, node_size: int = NODE_SIZE) -> IntArray:
    """Order points as KDBush (the index of the drawing library) does, so that the page need not.

    The point of median x comes to the middle, those left of it before it; the halves are ordered by y likewise, and so on in
    turns down to leaves of `node_size`.

    Parameters
    ----------
    x, y : (n,) any number

    Returns
    -------
    (n,) int64, rows in this order

    Notes
    -----
    Source: KDBush 4 (V. Agafonkin), `sort`.
    """
    order, places = np.arange(len(x)), (x, y)
    stack = [(0, len(x) - 1, 0)]
    while stack:
        left, right, axis = stack.pop()
        if right - left <= node_size:
            continue
        middle = (left + right) >> 1
        part = order[left : right + 1]
        order[left : right + 1] = part[np.argpartition(places[axis][part], middle - left)]
        stack += [(left, middle - 1, 1 - axis), (middle + 1, right, 1 - axis)]
    return order


def page_order(places: IntArray) -> IntArray:
    """Return the rows of places, (n, 2) from `quantise`, in the order in which a page has them: its y points up, that of places down."""
    return kd_order(places[:, 0].astype(np.float64), -places[:, 1].astype(np.float64))


def quantise(coords_um: FloatArray) -> tuple[np.ndarray, float]:
    """Put places, (n, 2) micrometres, on a grid of 65,536 steps along the longer side.

    Returns
    -------
    (n, 2) uint16 ; micrometres of a step
    """
    low = coords_um.min(axis=0)
    step = float(max(np.ptp(coords_um, axis=0).max(), 1e-6)) / 65535
    return np.rint((coords_um - low) / step).astype(np.uint16), step


def class_column(name: str, title: str, group: str, labels: Any) -> Column:
    """Make a column of classes, (n,) of strings or a pandas Categorical; "" and None are missing."""
    import pandas as pd

    values = pd.Categorical(labels)
    levels = [str(level) for level in values.categories]
    codes = values.codes.astype(np.int64) + 1
    if "" in levels:
        empty = levels.index("")
        codes = np.where(codes == empty + 1, 0, codes - (codes > empty + 1))
        levels.pop(empty)
    return Column(name, title, group, codes.astype(np.uint8 if len(levels) < 256 else np.uint16), levels, n_levels=len(levels))


def number_column(name: str, title: str, group: str, values: FloatArray) -> Column:
    """Make a column of numbers, (n,), in at most 254 levels: exact for small whole numbers, else equal steps; NaN is missing."""
    values = np.asarray(values, dtype=np.float64)
    is_known = np.isfinite(values)
    known = values[is_known]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    is_whole = bool((known == np.floor(known)).all())
    top = high
    if high > low and not (is_whole and high - low < N_LEVELS):
        tail = known[known > low]  # of counts most are zero
        bound = float(np.quantile(tail, 1 - LARGEST_SHARE_ABOVE))
        top = bound if high > low + 2 * (bound - low) > low else high
    is_exact = is_whole and top - low < N_LEVELS
    step = 1.0 if is_exact else (top - low) / (N_LEVELS - 1) or 1.0
    n_levels = int(top - low) + 1 if is_exact else N_LEVELS
    codes = np.zeros(len(values), np.uint8)
    codes[is_known] = 1 + np.clip(np.rint((known - low) / step), 0, n_levels - 1)
    return Column(name, title, group, codes, None, low, step, n_levels, is_exact, top < high)


def pack(values: np.ndarray) -> str:
    """Return numbers as base64 of gzip of their little-endian bytes."""
    raw = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"), copy=False)).tobytes()
    return base64.b64encode(gzip.compress(raw, compresslevel=4, mtime=0)).decode("ascii")
