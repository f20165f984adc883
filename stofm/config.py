"""Configurations: pydantic models filled from YAML and dotted overrides, closed to unknown keys, frozen afterwards."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, ValidationError
from yaml import YAMLError

from stofm.errors import ConfigError, one_line

ConfigT = TypeVar("ConfigT", bound="FrozenModel")


class FrozenModel(BaseModel):
    """A configuration that refuses unknown keys and cannot be edited after it was checked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def digest(self, *, exclude: set[str] | None = None) -> str:
        """Return the sha256 of the settings, as 64 hex digits; `exclude` names top-level fields that do not count."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json", exclude=exclude), sort_keys=True).encode()).hexdigest()

    def to_yaml(self) -> str:
        """Return the resolved configuration as YAML, every default written out."""
        return OmegaConf.to_yaml(OmegaConf.create(self.model_dump(mode="json")))


def load_config(cls: type[ConfigT], path: Path | str, overrides: Sequence[str] = ()) -> ConfigT:
    """Read a YAML file, merge dotted overrides (``optim.lr=1e-4``) over it, and validate.

    Raises
    ------
    ConfigError
        If the file is missing or is no YAML mapping, if an override is not ``key=value``, or if a key or value is not
        one that `cls` knows; an unknown key is answered with the nearest known name.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"configuration {path}: no such file; expected a YAML file. See configs/README.md for those shipped.")
    _require_pairs(overrides)
    try:
        loaded = OmegaConf.load(path)
        if not OmegaConf.is_dict(loaded):
            kind = type(OmegaConf.to_container(loaded)).__name__
            raise ConfigError(f"configuration {path}: found {kind}; expected valid YAML, a mapping of settings.")
        merged = OmegaConf.merge(loaded, OmegaConf.from_dotlist(list(overrides)))
        values = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
        raise ConfigError(f"configuration {path}: {one_line(error)}; expected valid YAML and key=value overrides.") from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"configuration {path}: found {type(values).__name__}; expected a mapping of settings.")
    return parse_config(cls, {str(key): value for key, value in values.items()}, where=f"configuration {path}")


def override_config(config: ConfigT, overrides: Sequence[str], *, where: str) -> ConfigT:
    """Return `config` with dotted overrides merged over it; raises as `load_config`."""
    _require_pairs(overrides)
    try:
        merged = OmegaConf.merge(OmegaConf.create(config.model_dump(mode="json")), OmegaConf.from_dotlist(list(overrides)))
        values = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError(f"{where}: {one_line(error)}; expected key=value overrides.") from error
    assert isinstance(values, dict)
    return parse_config(type(config), {str(key): value for key, value in values.items()}, where=where)


def _require_pairs(overrides: Sequence[str]) -> None:
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"override {override!r}: found no '='; expected key=value, for example optim.lr=1e-4.")


def parse_config(cls: type[ConfigT], values: Mapping[str, Any], *, where: str) -> ConfigT:
    """Validate `values` as a `cls`; `where` opens the message of the `ConfigError` raised for the first fault."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        first, n_more = error.errors()[0], error.error_count() - 1
        key = ".".join(str(part) for part in first["loc"])
        more = f" ({n_more} more fault{'s' * (n_more > 1)} behind it)" if n_more else ""
        if first["type"] == "extra_forbidden":
            known = _known_keys(cls, first["loc"][:-1])
            near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.0)
            hint = f"did you mean {near[0]!r}?" if near else "remove it."
            raise ConfigError(f"{where}: unknown key {key!r}; expected one of {', '.join(known)}; {hint}{more}") from error
        raise ConfigError(f"{where}: {key or 'settings'}: {first['msg']}; found {first['input']!r}.{more}") from error


def _known_keys(cls: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Field names of the model that `location` points to inside `cls`."""
    for part in location:
        if isinstance(part, int) or part not in cls.model_fields:
            continue  # a list index, or the tag of a union
        nested = _nested_model(cls.model_fields[part].annotation)
        if nested is None:
            return []
        cls = nested
    return sorted(cls.model_fields)


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    """The model inside an annotation such as ``list[Model]`` or ``Model | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _nested_model(arg))), None)
