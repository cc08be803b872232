"""From a configuration section to a dataclass of options, with every key and value checked.

A dataclass says what a section may hold: a field for every key, its type for the values. Types are
``int, float, bool, str, None``, their unions, ``Literal``, lists and tuples, mappings, other
dataclasses (sections within the section) and the kinds below with a range. What is wrong is found
at once for all keys, each problem with the full key.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from geopak.errors import ConfigError, GeopakError, nearest_name

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """What a number may be, as a mark on its type: ``Annotated[int, Range(1)]``.

    Attributes:
        least, most: bounds that are allowed themselves.
        above, below: bounds that are not.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a number lies within."""
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = {"above": "above", "least": "at least", "below": "below", "most": "at most"}
        bounds = ((word, getattr(self, name)) for name, word in words.items())
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)


@dataclass(frozen=True)
class PartOf:
    """Marks a mapping as some of the keys of a dataclass: ``Annotated[dict, PartOf(Province)]``.

    Attributes:
        kind: the dataclass.
        without: fields of it that are no keys.
    """

    kind: type
    without: tuple[str, ...] = ()


Count = Annotated[int, Range(least=1)]
Natural = Annotated[int, Range(least=0)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
Share = Annotated[float, Range(least=0, most=1)]


class Unresolved(str):
    """Stands for text that is not known yet: a ``???``, or an interpolation that needs a run."""


class _Unknown:
    """Stands for a value that cannot be judged, or that is wrong, as the problems say."""


_UNKNOWN = _Unknown()


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a configuration.

    Attributes:
        key: in full; empty where it is not one key's fault.
        text: what is wrong, without the full stop.
        remedy: further sentences.
    """

    key: str
    text: str
    remedy: str = ""

    @classmethod
    def of(cls, key: str, error: GeopakError | str) -> Problem:
        """The problem that an error tells of, its first sentence apart from the rest."""
        text, _, remedy = str(error).removesuffix(".").partition(". ")
        return cls(key, text, f"{remedy}." if remedy else "")

    def sentence(self, where: str = "") -> str:
        """The problem in words, with the place of its key."""
        place = f" ({where})" if where else ""
        remedy = f" {self.remedy}" if self.remedy else ""
        return f"{self.text}{place}.{remedy}"


def plain(section: Any) -> Any:
    """A configuration section as plain containers, interpolations resolved."""
    if type(section).__module__.partition(".")[0] != "omegaconf":
        return section
    # A checkpoint's sections are plain already, and its reader need not import this.
    from omegaconf import OmegaConf

    return OmegaConf.to_container(section, resolve=True)


def options(cls: type[T], section: Mapping[str, Any], name: str) -> T:
    """A dataclass of options from a configuration section.

    Args:
        cls: says which keys there are. Lists become tuples where it says so.
        section: plain containers.
        name: of the section, for messages.

    Raises:
        ConfigError: keys that the dataclass does not know or that are missing, values of another
            type than it says or out of range; each problem in a line.
    """
    built, problems = examine(cls, section, name)
    if problems:
        raise ConfigError("\n".join(problem.sentence() for problem in problems))
    assert built is not None
    return built


def examine(
    cls: type[T], section: Any, name: str = "", alone: bool = False
) -> tuple[T | None, list[Problem]]:
    """All problems of a section, and without any the dataclass made of it.

    Args:
        cls: says which keys there are; a method ``problems()`` of it names combinations that
            cannot be, as :class:`Problem`\\ s, once all else is well.
        section: plain containers, with :class:`Unresolved` for what is not known yet.
        name: of the section; empty for a whole configuration.
        alone: leave out the combinations.

    Returns:
        The dataclass, and the problems. It is ``None`` where there are problems or a value that
        decides over the section is not known yet.
    """
    problems: list[Problem] = []
    built = _examine(section, cls, name, problems)
    if not (alone or problems or isinstance(built, _Unknown)) and hasattr(built, "problems"):
        problems += built.problems()
    return (None if problems or isinstance(built, _Unknown) else built), problems


@functools.cache
def _types(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _examine(value: Any, kind: Any, key: str, problems: list[Problem]) -> Any:
    """The value as the dataclass wants it; :data:`_UNKNOWN` and a problem where it is wrong."""
    if isinstance(value, Unresolved):
        return value if _takes_text(kind) else _UNKNOWN
    if get_origin(kind) is Annotated:
        base, *marks = get_args(kind)
        return _examine_marked(value, base, marks, key, problems)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _examine_section(value, kind, key, problems)
    if not _is_a(value, kind):
        problems.append(_wrong_type(value, kind, key))
        return _UNKNOWN
    choices = _choices(kind)
    if choices and value is not None:
        fitting = [choice for choice in choices if _is_a(value, choice)]
        return _examine_choice(value, fitting, key, problems)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (tuple, list, Sequence):
        kinds = _item_kinds(kind, len(value))
        parts = [
            _examine(part, kind_of_it, f"{key}[{i}]", problems)
            for i, (part, kind_of_it) in enumerate(zip(value, kinds, strict=True))
        ]
        wrong = any(isinstance(part, _Unknown) for part in parts)
        return _UNKNOWN if wrong else parts if origin is list else tuple(parts)
    if origin in (dict, Mapping) and inner:
        return _examine_mapping(value, inner, key, problems)
    return value


def _examine_marked(
    value: Any, base: Any, marks: Sequence[Any], key: str, problems: list[Problem]
) -> Any:
    for mark in marks:
        if isinstance(mark, PartOf):
            if not isinstance(value, Mapping):
                problems.append(_wrong_type(value, Mapping[str, Any], key))
                return _UNKNOWN
            types = {k: t for k, t in _types(mark.kind).items() if k not in mark.without}
            return _examine_keys(value, types, key, problems)
        if isinstance(mark, Range) and _is_a(value, base) and not mark.holds(value):
            problems.append(Problem(key, f"{key}={_shown(value)} must be {mark}"))
            return _UNKNOWN
    if not _is_a(value, base):
        problems.append(_wrong_type(value, Annotated[base, *marks], key))
        return _UNKNOWN
    return _examine(value, base, key, problems)


def _examine_section(value: Any, cls: type, key: str, problems: list[Problem]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(_wrong_type(value, Mapping[str, Any], key))
        return _UNKNOWN
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    types = {name: kind for name, kind in _types(cls).items() if name in fields}
    before = len(problems)
    values = _examine_keys(value, types, key, problems)
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in value:
            full = _join(key, name)
            problems.append(Problem(full, f"The configuration lacks {full}"))
    if len(problems) > before or isinstance(values, _Unknown):
        return _UNKNOWN
    try:
        built = cls(**values)
    except GeopakError as error:
        problems += [_of_error(line, fields, key) for line in str(error).splitlines()]
        return _UNKNOWN
    return built


def _of_error(line: str, names: Mapping[str, Any], section: str) -> Problem:
    """A problem that a dataclass itself has found, with the first of its keys that is named."""
    # Within a section that is in several places, its own keys are named alone.
    first = re.match(r"\w+", line)
    if section and first and first[0] in names:
        line = f"{section}.{line}"
    full = [_join(section, name) for name in names]
    named = sorted((line.index(k), -len(k), k) for k in full if k in line)
    return Problem.of(named[0][2] if named else section, line)


def _examine_keys(
    value: Mapping[Any, Any], types: Mapping[str, Any], key: str, problems: list[Problem]
) -> Any:
    values = {}
    for name, part in value.items():
        full = _join(key, name)
        if name in types:
            values[name] = _examine(part, types[name], full, problems)
        else:
            problems.append(unknown_key(full, str(name), list(types)))
    return _UNKNOWN if any(isinstance(v, _Unknown) for v in values.values()) else values


def unknown_key(full: str, name: str, known: Sequence[str]) -> Problem:
    """The problem of a key that is not an option."""
    hint = f"{nearest_name(name, known)} Known: {', '.join(known)}."
    return Problem(full, f"{full} is not an option", hint.strip())


def _examine_mapping(
    value: Mapping[Any, Any], inner: Sequence[Any], key: str, problems: list[Problem]
) -> Any:
    name_kind, part_kind = inner
    values = {}
    for name, part in value.items():
        full = _join(key, name)
        if _is_a(name, name_kind):
            values[name] = _examine(part, part_kind, full, problems)
        elif get_origin(name_kind) is Literal:
            problems.append(unknown_key(full, str(name), [str(k) for k in get_args(name_kind)]))
        else:
            text = f"{full}: the key {_shown(name)} must be {described(name_kind)}"
            problems.append(Problem(full, text))
    missing = any(isinstance(v, _Unknown) for v in values.values())
    return _UNKNOWN if missing or len(values) < len(value) else values


def _examine_choice(value: Any, fitting: Sequence[Any], key: str, problems: list[Problem]) -> Any:
    """The value as the first of the kinds that has no problem with it, else the closest one's."""
    tries: list[tuple[list[Problem], Any]] = []
    for kind in fitting:
        found: list[Problem] = []
        built = _examine(value, kind, key, found)
        if not found:
            return built
        tries.append((found, built))
    found, built = min(tries, key=lambda t: (_is_other_kind(t[0], key), len(t[0])))
    problems += found
    return built


def _is_other_kind(problems: Sequence[Problem], key: str) -> bool:
    return any(problem.key == f"{key}.kind" for problem in problems)


def _join(section: str, name: Any) -> str:
    return f"{section}.{name}" if section else str(name)


def _wrong_type(value: Any, kind: Any, key: str) -> Problem:
    names = [str(name) for name in _names(kind)]
    words = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str)]
    hint = next((nearest_name(word, names).strip() for word in words if word not in names), "")
    return Problem(key, f"{key}={_shown(value)} must be {described(kind)}", hint)


def _names(kind: Any) -> Iterator[Any]:
    """Every value that a kind lists by name."""
    if get_origin(kind) is Literal:
        yield from get_args(kind)
    elif get_origin(kind) in (Annotated, list, tuple):
        yield from _names(get_args(kind)[0])
    for choice in _choices(kind):
        yield from _names(choice)


def _choices(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else ()


def _item_kinds(kind: Any, length: int) -> list[Any]:
    items = get_args(kind)
    if get_origin(kind) is tuple and not (len(items) == 2 and items[1] is Ellipsis):
        return list(items)
    return [items[0] if items else Any] * length


def _takes_text(kind: Any) -> bool:
    if get_origin(kind) is Annotated:
        return _takes_text(get_args(kind)[0])
    return kind in (str, Any) or any(_takes_text(choice) for choice in _choices(kind))


def _is_a(value: Any, expected: Any) -> bool:
    """Whether a value is of a kind, down to the items of lists; what is in mappings comes later."""
    origin = get_origin(expected)
    if expected is Any or isinstance(value, Unresolved):
        return True
    if origin is Annotated:
        return _is_a(value, get_args(expected)[0])
    if origin in (Union, UnionType):
        return any(_is_a(value, choice) for choice in get_args(expected))
    if origin is Literal:
        return any(value == name and type(value) is type(name) for name in get_args(expected))
    if origin in (tuple, list, Sequence):
        if not isinstance(value, (list, tuple)):
            return False
        kinds = _item_kinds(expected, len(value))
        return len(kinds) == len(value) and all(
            _is_a(v, k) for v, k in zip(value, kinds, strict=True)
        )
    if origin in (dict, Mapping) or dataclasses.is_dataclass(expected):
        return isinstance(value, Mapping)
    if expected is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and not math.isnan(value)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, expected)


def described(kind: Any) -> str:
    """A kind of value in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        ranges = [str(mark) for mark in inner[1:] if isinstance(mark, Range)]
        return " ".join([described(inner[0]), *ranges])
    if origin in (Union, UnionType):
        kinds_of_it = [_without_truth(choice) if bool in inner else choice for choice in inner]
        parts = list(dict.fromkeys(described(choice) for choice in kinds_of_it))
        # null goes last: 'a number or null'.
        parts.sort(key=lambda part: part == "null")
        return " or ".join(parts)
    if origin is Literal:
        names = [_typed(name) for name in inner]
        return names[0] if len(names) == 1 else f"one of {', '.join(names)}"
    if origin in (tuple, list, Sequence):
        kinds = {float: "numbers", int: "integers", str: "names"}
        first = get_args(inner[0])[0] if get_origin(inner[0]) is Annotated else inner[0]
        many = f"{len(inner)} " if origin is tuple and inner[-1] is not Ellipsis else ""
        if get_origin(first) is Literal:
            return f"a list of some of {', '.join(_typed(name) for name in get_args(first))}"
        if dataclasses.is_dataclass(first):
            return f"a list of {many}sections {{key: value, …}}"
        return f"a list of {many}{kinds.get(first, 'values')}"
    if origin in (dict, Mapping) or dataclasses.is_dataclass(kind):
        return "a section {key: value, …}"
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a name"}
    return {**words, NoneType: "null", Any: "any value"}[kind]


def _without_truth(kind: Any) -> Any:
    """Names without those that YAML reads as true and false anyhow."""
    if get_origin(kind) is not Literal:
        return kind
    return Literal[tuple(name for name in get_args(kind) if name not in ("true", "false"))]


def _shown(value: Any) -> str:
    """A value as one would type it, text in quotes."""
    return repr(str(value)) if isinstance(value, str) else _typed(value)


def _typed(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
