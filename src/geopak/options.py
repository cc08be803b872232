"""From a configuration section to a dataclass of options, with every key and type checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from geopak.errors import ConfigError, nearest_name

T = TypeVar("T")


def plain(section: Any) -> Any:
    """A configuration section as plain containers, interpolations resolved."""
    if type(section).__module__.partition(".")[0] != "omegaconf":
        return section
    # A checkpoint's sections are plain already, and its reader need not import this.
    from omegaconf import OmegaConf

    return OmegaConf.to_container(section, resolve=True)


def options(cls: type[T], section: Mapping[str, Any], name: str) -> T:
    """A dataclass of options from a configuration section.

    Raises:
        ConfigError: a key that the dataclass does not know, one missing, or a value of another
            type than the dataclass says.
    """
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if not isinstance(section, Mapping):
        raise ConfigError(f"{name}={_shown(section)} must be a section of options.")
    for key in section:
        if key not in known:
            raise ConfigError(
                f"{name}.{key} is not an option.{nearest_name(str(key), known)} "
                f"Known: {', '.join(known)}."
            )
    missing = [
        key
        for key, f in known.items()
        if key not in section
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{name} lacks {', '.join(missing)}.")
    types = get_type_hints(cls)
    for key, value in section.items():
        _check_type(value, types[key], f"{name}.{key}")
    return cls(**section)


def _check_type(value: Any, expected: Any, key: str) -> None:
    """Raises a ConfigError unless a value is of the type that an annotation says."""
    if not _is_a(value, expected):
        raise ConfigError(f"{key}={_shown(value)} must be {_described(expected)}.")
    values = get_args(expected)
    if get_origin(expected) in (dict, Mapping) and values[1] is not Any:
        for name, part in value.items():
            _check_type(part, values[1], f"{key}.{name}")


def _is_a(value: Any, expected: Any) -> bool:
    origin = get_origin(expected)
    if expected is Any:
        return True
    if origin in (Union, UnionType):
        return any(_is_a(value, choice) for choice in get_args(expected))
    if origin is tuple:
        items = get_args(expected)
        return isinstance(value, (list, tuple)) and all(_is_a(v, items[0]) for v in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    if expected is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and not math.isnan(value)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, expected)


def _described(expected: Any) -> str:
    origin = get_origin(expected)
    if origin in (Union, UnionType):
        return " or ".join(_described(choice) for choice in get_args(expected))
    if origin is tuple:
        kinds = {float: "numbers", int: "integers"}
        return f"a list of {kinds.get(get_args(expected)[0], 'names')}"
    if origin in (dict, Mapping):
        return "a section {key: value, …}"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a name"}
    return {**names, NoneType: "null"}[expected]


def _shown(value: Any) -> str:
    """A value as one would type it, text in quotes."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)
