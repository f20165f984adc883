"""Settings of `stofm build`: which slices, how they are read, what may be left out, where the work is done."""

from __future__ import annotations

import glob
from pathlib import Path

from pydantic import Field, model_validator

from corpus.duplicates import DuplicatePolicy
from corpus.gene_vocab import GeneConfig
from corpus.qc import QualityConfig
from corpus.readers import SUFFIXES, slice_name, technology_of
from corpus.scales import ScaleConfig
from corpus.slice import SliceSpec
from corpus.splits import SplitConfig
from corpus.tasks import TaskConfig
from stofm.config import FrozenModel
from stofm.errors import BadSlice, ConfigError

NOT_IN_THE_BYTES = {"out", "tolerance", "tasks"}  # settings that decide whether and how fast a corpus is finished, not what it is


class ToleranceConfig(FrozenModel):
    """How many slices may be set aside before the corpus is not finished.

    The defaults suit small corpora, where one slice is a large share; a release says 0.02 and 0.01.
    """

    strict: bool = Field(False, description="No slice may be set aside.")
    max_share_of_slices: float = Field(0.5, ge=0, le=1, description="Largest share of slices set aside.")
    max_share_of_cells: float = Field(0.5, ge=0, le=1, description="Largest share of cells in slices set aside, where their cells could be counted.")


class CorpusConfig(FrozenModel):
    """`stofm build`: which slices, and how they are read."""

    out: str = Field(description="Folder of the corpus.")
    slices: list[SliceSpec] = Field(default_factory=list, description="Slices, each with its own settings.")
    sources: list[SliceSpec] = Field(
        default_factory=list, description="Folders and patterns (data/*.h5ad): each match is a slice with these settings, unless `slices` names it."
    )
    exclude: list[str] = Field(default_factory=list, description="Slices kept out for evaluation, and their copies: slice_id, donor or sha256.")
    quality: QualityConfig = Field(default_factory=QualityConfig)
    genes: GeneConfig = Field(default_factory=GeneConfig)
    scales: ScaleConfig = Field(default_factory=ScaleConfig)
    min_share_of_counts: float = Field(0.0, ge=0, le=1, description="Slices with a smaller share of counts on mapped genes are refused.")
    licenses: list[str] | None = Field(None, description="Licences that a slice may have, as its file states them; default: any, and none.")
    duplicates: DuplicatePolicy = Field("drop", description="Slices that hold the same cells as another: drop, keep or refuse.")
    splits: SplitConfig | None = Field(None, description="Divide the slices by donor or study; default: no splits.")
    tolerance: ToleranceConfig = Field(default_factory=ToleranceConfig)
    tasks: TaskConfig = Field(default_factory=TaskConfig)

    @model_validator(mode="after")
    def _names_differ(self) -> CorpusConfig:
        if not self.slices and not self.sources:
            raise ValueError("found no slice; expected some. Set `slices` or `sources`.")
        if twice := _twice(self.slices):
            raise ValueError(f"slice_id {twice!r} is used twice; expected one name per slice. Set `slice_id`.")
        return self

    @property
    def settings(self) -> str:
        """Digest of all settings that decide the bytes of the corpus."""
        return self.digest(exclude=NOT_IN_THE_BYTES)

    def all_specs(self) -> list[SliceSpec]:
        """Return `slices`, then what `sources` match now; `ConfigError` if one matches nothing or two slices share a name."""
        named = {str(Path(spec.path)) for spec in self.slices}
        specs = [*self.slices, *(spec for source in self.sources for spec in _matches(source) if spec.path not in named)]
        if twice := _twice(specs):
            paths = [spec.path for spec in specs if slice_name(spec) == twice]
            raise ConfigError(f"sources: {' and '.join(paths)} are both named {twice!r}; expected one name per slice. Name them in `slices`.")
        return specs


def _matches(source: SliceSpec) -> list[SliceSpec]:
    """Every slice that a folder or a pattern names, by path."""
    if source.slice_id is not None:
        raise ConfigError(f"sources: {source.path} has `slice_id`; expected none, for it may match many. Move it to `slices`.")
    paths = sorted(str(Path(path)) for path in glob.glob(source.path, recursive=True))
    found = [source.model_copy(update={"path": path}) for path in paths]
    if paths == [str(Path(source.path))] and Path(source.path).is_dir() and not _is_slice(found[0]):
        found = [source.model_copy(update={"path": str(path)}) for path in sorted(Path(source.path).iterdir())]
        found = [spec for spec in found if Path(spec.path).is_dir() or spec.path.endswith(tuple(SUFFIXES))]
    if not found:
        raise ConfigError(f"sources: {source.path}: found no slice; expected some. Check the path.")
    return found


def _is_slice(spec: SliceSpec) -> bool:
    try:
        technology_of(spec)
    except BadSlice:
        return False
    return True


def _twice(specs: list[SliceSpec]) -> str | None:
    names = [slice_name(spec) for spec in specs]
    return next((name for name in sorted(names) if names.count(name) > 1), None)
