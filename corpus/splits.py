"""Training, validation and test: whole donors or studies, so that nothing of a tissue is on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from stofm.config import FrozenModel
from stofm.durable import replacing
from stofm.errors import ConfigError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class SplitConfig(FrozenModel):
    """Who is trained on and who is held out."""

    by: Literal["donor", "study"] = Field("donor", description="What is never divided: all slices of a donor, or of a study.")
    shares: dict[Split, float] = Field(
        {"train": 0.8, "validation": 0.1, "test": 0.1}, description="Shares of the cells, as near as whole donors allow."
    )
    fixed: dict[str, Split] = Field(default_factory=dict, description="Splits set by hand: slice_id, donor or study -> split.")
    seed: int = 0

    @model_validator(mode="after")
    def _shares_add_up(self) -> SplitConfig:
        if min(self.shares.values(), default=-1.0) < 0 or abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(f"shares {self.shares} add up to {sum(self.shares.values()):g}; expected shares of at least 0 that add up to 1.")
        return self


@dataclass(frozen=True)
class SliceOrigin:
    """Where a slice comes from. Donors are told apart within a study; the same name in two studies is two donors."""

    slice_id: str
    donor: str
    study: str
    n_cells: int


@dataclass(frozen=True)
class SplitRow:
    """A line of ``splits.parquet``; `unit` names the slices that had to stay together, by the first of them."""

    slice_id: str
    split: Split
    unit: str
    donor: str
    study: str


def assign_splits(origins: Sequence[SliceOrigin], groups: Iterable[Sequence[str]], config: SplitConfig) -> list[SplitRow]:
    """Give every slice its split; the order of the slices does not matter.

    Parameters
    ----------
    origins : of all slices, those that were dropped as copies too: they tell which donors are one
    groups : of slice_ids
        Slices that must share a split whoever the donor is: the groups of `find_duplicates`.

    Returns
    -------
    list of SplitRow
        By slice_id.

    Raises
    ------
    ConfigError
        If `config.fixed` names nothing that exists, or puts slices that belong together into two splits.

    Notes
    -----
    Units are dealt in an order that the seed shuffles, each to the split that is emptiest for its share among those with
    room for it. A split that then has none takes the smallest unit of the split that has most.
    """
    origins = sorted(origins, key=lambda one: one.slice_id)
    units = _units(origins, groups, config.by)
    fixed = _fixed(origins, units, config.fixed)
    sizes = np.bincount(units, weights=[one.n_cells for one in origins])
    names = [origins[int(np.argmax(units == unit))].slice_id for unit in range(len(sizes))]
    wanted = [split for split in SPLITS if config.shares.get(split, 0) > 0]
    of_unit = dict(fixed)
    room = {split: config.shares[split] * sizes.sum() - sum(sizes[unit] for unit in fixed if fixed[unit] == split) for split in wanted}
    for unit in sorted(set(range(len(sizes))) - set(fixed), key=lambda unit: _shuffled(config.seed, names[unit])):
        fitting = [split for split in wanted if room[split] >= sizes[unit]]
        chosen = max(fitting, key=lambda split: room[split] / config.shares[split]) if fitting else max(wanted, key=lambda split: room[split])
        of_unit[unit], room[chosen] = chosen, room[chosen] - sizes[unit]
    _fill_empty(of_unit, wanted, sizes, fixed)
    return [SplitRow(one.slice_id, of_unit[unit], names[unit], one.donor, one.study) for one, unit in zip(origins, units.tolist(), strict=True)]


def write_splits(path: Path, rows: Sequence[SplitRow]) -> None:
    """Write ``splits.parquet``, whole or not at all."""
    import pandas as pd

    with replacing(path) as aside:
        pd.DataFrame([asdict(row) for row in rows], columns=[field.name for field in fields(SplitRow)]).to_parquet(aside, index=False)


def _units(origins: Sequence[SliceOrigin], groups: Iterable[Sequence[str]], by: str) -> np.ndarray:
    """Number the slices by what stays together, (n_slices,): a donor, a study where asked, a group of duplicates."""
    number_of = {one.slice_id: number for number, one in enumerate(origins)}
    first_of: dict[tuple[str, str], int] = {}
    keys = [(one.study, one.donor if by == "donor" or not one.study else "") for one in origins]
    pairs = [(first_of.setdefault(key, number), number) for number, key in enumerate(keys)]
    pairs += [(number_of[group[0]], number_of[member]) for group in groups for member in group]
    first, second = zip(*pairs, strict=True)
    return connected_components(csr_matrix((np.ones(len(pairs)), (first, second)), (len(origins), len(origins))), directed=False)[1]


def _fixed(origins: Sequence[SliceOrigin], units: np.ndarray, fixed: Mapping[str, Split]) -> dict[int, Split]:
    """Return the splits set by hand, by unit."""
    of_unit: dict[int, tuple[str, Split]] = {}
    for name, split in sorted(fixed.items()):
        members = [number for number, one in enumerate(origins) if name in (one.slice_id, one.donor, one.study)]
        if not members:
            raise ConfigError(f"splits: `fixed` names {name!r}, which is no slice, donor or study of the corpus; expected one. Correct the name.")
        for member in members:
            other, other_split = of_unit.setdefault(int(units[member]), (name, split))
            if other_split != split:
                raise ConfigError(
                    f"splits: {other!r} is fixed to {other_split} and {name!r} to {split}, but slice {origins[member].slice_id!r} (donor "
                    f"{origins[member].donor!r}) belongs to both or holds the same cells; expected one split. Fix both to the same one."
                )
    return {unit: split for unit, (_, split) in of_unit.items()}


def _fill_empty(of_unit: dict[int, Split], wanted: Sequence[Split], sizes: np.ndarray, fixed: Mapping[int, Split]) -> None:
    """Give each empty split the smallest free unit of the split that has most units, where that one has two."""
    for empty in [split for split in wanted if split not in of_unit.values()]:
        held = {split: [unit for unit in of_unit if of_unit[unit] == split and unit not in fixed] for split in wanted}
        donor = max(wanted, key=lambda split: len(held[split]))
        if len(held[donor]) > 1:
            of_unit[min(held[donor], key=lambda unit: (sizes[unit], unit))] = empty


def _shuffled(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{name}".encode()).digest()
