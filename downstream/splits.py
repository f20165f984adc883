"""Who is trained on and who is held out in an evaluation: whole slices or donors, blocks of tissue with a gap, or cells at random."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.random import default_rng
from pydantic import Field
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy.spatial import cKDTree

from corpus.cell_order import content_keys
from corpus.slice import BoolArray, FloatArray, IntArray, Slice, nearest_spacing
from corpus.sub_slices import SubSliceConfig, cut_sub_slices
from stofm.config import FrozenModel
from stofm.durable import replacing
from stofm.errors import DataError

LEFT_OUT, TRAINING, HELD_OUT = 0, 1, 2  # the role of a cell in a fold


class SplitConfig(FrozenModel):
    """How held-out cells are chosen."""

    by: Literal["slice", "donor", "blocks", "random"] = Field(
        "slice", description="Held out in turn: every slice, every donor, blocks of tissue; or cells at random, whose neighbours leak."
    )
    n_folds: int = Field(5, ge=2, description="Blocks, random: the cells are dealt to so many folds. Random: only the first is held out.")
    n_blocks: int = Field(20, ge=2, description="Blocks: pieces that a slice is cut into, of nearly equal numbers of cells.")
    gap_spacings: float = Field(
        3.0, ge=0, description="Blocks: cells so near to a held-out one are in neither part, in median distances of nearest cells."
    )


@dataclass(frozen=True, eq=False)
class Fold:
    """One way to part the cells of some slices.

    Attributes
    ----------
    name : str
        What is held out.
    roles : tuple of (n_cells,) uint8
        `LEFT_OUT`, `TRAINING` or `HELD_OUT` for every cell of every slice.
    """

    name: str
    roles: tuple[IntArray, ...]

    @property
    def fit_on(self) -> list[int]:
        """Numbers of the slices that have training cells."""
        return [number for number, roles in enumerate(self.roles) if (roles == TRAINING).any()]


def make_folds(slices: Sequence[Slice], config: SplitConfig, *, seed: int) -> list[Fold]:
    """Part the cells of `slices`; every cell is held out in one fold at most (in just one, unless at random).

    Raises
    ------
    DataError
        If there is nothing to train on: one slice or one donor, or a gap that swallows all training cells.
    """
    folds = _MAKE[config.by](slices, config, seed)
    for fold in folds:
        if not fold.fit_on:
            raise DataError(f"splits by {config.by}: found no training cells beside {fold.name!r}; expected some. {_REMEDY[config.by]}")
    return folds


def _by_name(slices: Sequence[Slice], names: Sequence[str]) -> list[Fold]:
    """Hold out each of the names in turn, (n_slices,), with all slices that have it."""
    return [
        Fold(
            held_out,
            tuple(np.full(one.n_cells, HELD_OUT if name == held_out else TRAINING, np.uint8) for one, name in zip(slices, names, strict=True)),
        )
        for held_out in dict.fromkeys(names)
    ]


def _by_slice(slices: Sequence[Slice], config: SplitConfig, seed: int) -> list[Fold]:
    return _by_name(slices, [one.slice_id for one in slices])


def _by_donor(slices: Sequence[Slice], config: SplitConfig, seed: int) -> list[Fold]:
    return _by_name(slices, [str(one.source.get("donor", one.slice_id)) for one in slices])


def _by_blocks(slices: Sequence[Slice], config: SplitConfig, seed: int) -> list[Fold]:
    """Deal the blocks of every slice to the folds; what lies near to a held-out block is in neither part."""
    of_fold = []
    for number, one in enumerate(slices):
        blocks = tissue_blocks(one, config.n_blocks)
        deal = default_rng([seed, number]).permutation(blocks.max() + 1) % config.n_folds
        of_fold.append(deal[blocks])
    folds = []
    for k in range(config.n_folds):
        roles = []
        for one, fold in zip(slices, of_fold, strict=True):
            is_held = fold == k
            near = _near(one, is_held, config.gap_spacings * nearest_spacing(one.coords_um))
            roles.append(np.where(is_held, HELD_OUT, np.where(near, LEFT_OUT, TRAINING)).astype(np.uint8))
        folds.append(Fold(f"blocks {k}", tuple(roles)))
    return folds


def _at_random(slices: Sequence[Slice], config: SplitConfig, seed: int) -> list[Fold]:
    draws = [default_rng([seed, number]).permutation(one.n_cells) % config.n_folds for number, one in enumerate(slices)]
    return [Fold("random cells", tuple(np.where(draw == 0, HELD_OUT, TRAINING).astype(np.uint8) for draw in draws))]


_MAKE = {"slice": _by_slice, "donor": _by_donor, "blocks": _by_blocks, "random": _at_random}
_REMEDY = {
    "slice": "Add slices, or split by blocks.",
    "donor": "Add slices of other donors (`donor` names them), or split by slice.",
    "blocks": "Lower `gap_spacings` or `n_blocks`.",
    "random": "Add cells.",
}


def tissue_blocks(st_slice: Slice, n_blocks: int) -> IntArray:
    """Return the block of every cell, (n_cells,) int64: compact pieces of nearly equal numbers, the same however the tissue is turned."""
    return blocks_of(st_slice.coords_um, content_keys(st_slice.counts), n_blocks)


def blocks_of(coords: FloatArray, keys: np.ndarray, n_blocks: int) -> IntArray:
    """As `tissue_blocks`, of places (n, 2) in any unit and the content (n,) uint64 of each cell."""
    blocks = np.empty(len(coords), np.int64)
    for number, part in enumerate(cut_sub_slices(coords, keys, SubSliceConfig(n_cells=max(1, round(len(coords) / n_blocks))))):
        blocks[part.owned] = number
    return blocks


def _near(st_slice: Slice, is_held: BoolArray, gap_um: float) -> BoolArray:
    if not gap_um or not is_held.any():
        return np.zeros(st_slice.n_cells, dtype=bool)
    distance, _ = cKDTree(st_slice.coords_um[is_held]).query(st_slice.coords_um, distance_upper_bound=gap_um)
    return np.isfinite(distance)


def stored_folds(path: Path, slices: Sequence[Slice], config: SplitConfig, *, seed: int, inputs: Sequence[str]) -> tuple[list[Fold], str]:
    """Return the folds that `path` holds for these settings and inputs, or make and store them there.

    Parameters
    ----------
    inputs : sha256 of the file of each slice

    Returns
    -------
    folds ; sha256 of all roles, by which two evaluations show that they held out the same cells
    """
    wanted = {"settings": config.model_dump_json(), "seed": str(seed), "inputs": json.dumps(list(inputs))}
    folds = _read(path, wanted, len(slices)) or make_folds(slices, config, seed=seed)
    arrays = {f"{number:03d}/{fold.name}/{of_slice:03d}": roles for number, fold in enumerate(folds) for of_slice, roles in enumerate(fold.roles)}
    with replacing(path) as aside:
        save_file(arrays, aside, metadata=wanted)
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].tobytes())
    return folds, digest.hexdigest()


def _read(path: Path, wanted: dict[str, str], n_slices: int) -> list[Fold] | None:
    if not path.is_file():
        return None
    with safe_open(path, "np") as file:
        if file.metadata() != wanted:
            return None
        arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
    names = list(arrays)
    return [
        Fold(names[start].split("/", 1)[1].rsplit("/", 1)[0], tuple(arrays[name] for name in names[start : start + n_slices]))
        for start in range(0, len(names), n_slices)
    ]
