"""Sections of tissue in one file: told apart by a column or by z where the user says so, refused where they lie on top of each other."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from corpus.slice import BoolArray, FloatArray, SliceSpec, StrArray
from stofm.errors import BadSlice

if TYPE_CHECKING:
    from anndata import AnnData

SECTION_COLUMNS = ("section", "section_id", "slice", "slice_id", "sample", "sample_id", "library_id", "brain_section_label")
FOV_COLUMNS = ("fov", "FOV", "fov_id", "fov_name")
LARGEST_OVERLAP = 0.5
MOST_GROUPS = 10_000  # a column of more values names cells, not fields of view


def section_specs(table: AnnData, coords: FloatArray, spec: SliceSpec, *, name: str) -> list[SliceSpec]:
    """Return one specification per section of a file, by `spec.section_key`; the given one if that is not set or is narrowed already."""
    if spec.section_key is None or spec.section is not None:
        return [spec]
    sections = np.unique(section_of(table, coords, spec.section_key)).tolist()
    suffixes = [re.sub(r"[^A-Za-z0-9_-]", "_", section)[:30] for section in sections]
    if len(set(suffixes)) < len(suffixes):
        raise BadSlice("MULTI_SECTION", f"sections {sections} cannot be told apart in names of slices; expected letters and digits. Rename them.")
    return [
        spec.model_copy(update={"section": section, "slice_id": f"{name[: 59 - len(suffix)]}-{suffix}"})
        for section, suffix in zip(sections, suffixes, strict=True)
    ]


def section_of(table: AnnData, coords: FloatArray, key: str) -> StrArray:
    """Return (n_rows,) the section of every row, by an obs column or by the third coordinate; `BadSlice` if some row has none."""
    if key in table.obs:
        column = table.obs[key]
        is_missing, sections = column.isna().to_numpy(), column.astype(str).to_numpy().astype(str)
    elif key == "z" and coords.shape[1] == 3:
        is_missing, sections = ~np.isfinite(coords[:, 2]), np.char.mod("%g", coords[:, 2])
    else:
        raise BadSlice("MULTI_SECTION", f"found obs columns {sorted(table.obs)} and coordinates of {coords.shape[1]} axes; expected section_key "
                       f"{key!r} among them. Correct the name.")  # fmt: skip
    if is_missing.any():
        raise BadSlice("MULTI_SECTION", f"{int(is_missing.sum())} cells name no section in {key!r}; expected all to. Drop them from the file.")
    return sections


def rows_of_section(table: AnnData, coords: FloatArray, spec: SliceSpec) -> BoolArray:
    """Return (n_rows,) which rows make up the slice that is asked for.

    Raises
    ------
    BadSlice
        ``MULTI_SECTION`` if the rows are of several sections and none is named, or none is of the named one;
        ``FOV_OVERLAP`` if fields of view lie on top of each other.
    """
    if spec.section_key is not None:
        sections = section_of(table, coords, spec.section_key)
        found = np.unique(sections).tolist()
        if spec.section is None and len(found) > 1:
            raise BadSlice("MULTI_SECTION", f"found sections {found[:8]}; expected one per slice. Name one with `section`.")
        is_here = sections == (spec.section or found[0])
        if not is_here.any():
            raise BadSlice("MULTI_SECTION", f"found sections {found[:8]}; expected {spec.section!r} among them. Correct `section`.")
    else:
        is_here = np.ones(table.n_obs, dtype=bool)
        if coords.shape[1] == 3 and np.nanmax(coords[:, 2]) > np.nanmin(coords[:, 2]):
            raise BadSlice("MULTI_SECTION", "coordinates have a varying z; expected one section per slice. Set `section_key` to the obs column that "
                           "tells sections apart, or to z.")  # fmt: skip
        column = _overlapping(table, coords, SECTION_COLUMNS, is_here)
        if column is not None:
            raise BadSlice("MULTI_SECTION", f"sections named in obs[{column!r}] lie on top of each other; expected one section per slice. "
                           f"Set `section_key: {column}`.")  # fmt: skip
    column = _overlapping(table, coords, FOV_COLUMNS, is_here)
    if column is not None:
        raise BadSlice("FOV_OVERLAP", f"fields of view named in obs[{column!r}] lie on top of each other; expected places in the whole slice, not in "
                       "the field. Set `spatial_key` to the global coordinates.")  # fmt: skip
    return is_here


def _overlapping(table: AnnData, coords: FloatArray, columns: tuple[str, ...], is_here: BoolArray) -> str | None:
    """Return the first of these columns whose groups mostly share their place with another group."""
    import pandas as pd

    is_placed = is_here & np.isfinite(coords[:, :2]).all(axis=1)
    for column in columns:
        if column in table.obs and 1 < table.obs[column].nunique() <= MOST_GROUPS:
            places = pd.DataFrame(coords[is_placed, :2]).groupby(table.obs[column].astype(str).to_numpy()[is_placed])
            if overlap_of_boxes(places.min().to_numpy(), places.max().to_numpy()) > LARGEST_OVERLAP:
                return column
    return None


def overlap_of_boxes(low: FloatArray, high: FloatArray) -> float:
    """Return the median over boxes of the largest share of a box that lies in one other box; 0 for fewer than two boxes with an area.

    Parameters
    ----------
    low, high : (n_boxes, 2) float
        Corners of the boxes.
    """
    has_area = (high > low).all(axis=1)
    low, high = low[has_area], high[has_area]
    if len(low) < 2:
        return 0.0
    area, largest = np.prod(high - low, axis=1), np.zeros(len(low))
    for one in range(len(low)):  # a row at a time: thousands of fields would make a large square
        shared = np.prod(np.clip(np.minimum(high, high[one]) - np.maximum(low, low[one]), 0, None), axis=1)
        shared[one] = 0
        largest[one] = shared.max() / area[one]
    return float(np.median(largest))
