"""What a composed configuration has to pass: its command's schema, before anything else happens.

Every way in (command line, ``--cfg``, multirun, sweepers, compose API) ends where Hydra's loader
has composed a job's configuration. There it is checked against :mod:`geopak.schema`, and what
Hydra itself refuses is put into words: the key, what it may be, the nearest name, the file.
"""

from __future__ import annotations

import difflib
import enum
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)

from geopak.errors import ConfigError
from geopak.options import Problem, Unresolved, examine
from geopak.schema import schema_of

_BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


class Purpose(enum.Enum):
    """Why a configuration is composed."""

    # For itself (compose API, --cfg): what has no default may stay open.
    LOOK = enum.auto()
    # To be run: every value has to be there.
    RUN = enum.auto()
    # To answer what may be typed (--help, shell completion): it is not checked.
    ASK = enum.auto()


_purpose: ContextVar[Purpose] = ContextVar("purpose", default=Purpose.LOOK)
_command: ContextVar[str] = ContextVar("command", default="")


@contextmanager
def composing(purpose: Purpose, command: str | None = None) -> Iterator[None]:
    """Within it, configurations are composed for a purpose.

    Args:
        purpose: why.
        command: whose schema holds for configurations that are not named like a command.
    """
    before = _purpose.set(purpose)
    named = _command.set(command or _command.get())
    try:
        yield
    finally:
        _purpose.reset(before)
        _command.reset(named)


def check_compositions() -> None:
    """Makes Hydra's loader check every job's configuration that it composes."""
    original = ConfigLoaderImpl.load_configuration
    if getattr(original, "_geopak", False):
        return

    @functools.wraps(original)
    def load_configuration(
        self: ConfigLoaderImpl,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        arguments = (config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        purpose = _purpose.get()
        # Without validation Hydra only asks for its own mode, and takes no error for an answer.
        if purpose is Purpose.ASK or config_name is None or not validate_sweep_overrides:
            return original(self, *arguments)
        try:
            cfg = original(self, *arguments)
        except HydraException as error:
            lines = _explained(self, config_name, overrides, error)
            raise ConfigError("\n".join(lines)) from error
        if run_mode is RunMode.RUN:
            problems = problems_of(cfg, config_name, strict=purpose is Purpose.RUN)
            _refuse(self, config_name, overrides, problems)
        elif purpose is Purpose.RUN:
            _check_sweep(self, cfg, config_name, overrides)
        return cfg

    load_configuration._geopak = True  # type: ignore[attr-defined]
    ConfigLoaderImpl.load_configuration = load_configuration  # type: ignore[method-assign]


def _refuse(
    loader: ConfigLoaderImpl,
    config_name: str,
    overrides: Sequence[str],
    problems: Sequence[Problem],
) -> None:
    """Raises a ConfigError with every problem of a configuration, a line each, if there is any."""
    if problems:
        places = _places(loader, config_name, overrides)
        lines = [problem.sentence(_place(places, problem.key)) for problem in problems]
        raise ConfigError("\n".join(dict.fromkeys(lines)))


def _check_sweep(
    loader: ConfigLoaderImpl, cfg: DictConfig, config_name: str, overrides: Sequence[str]
) -> None:
    """Checks all jobs of a multirun, as far as they are known, before the sweeper makes a folder.

    Raises:
        ConfigError: a job that is refused.
    """
    sweeper: Any = OmegaConf.to_container(cfg.hydra.sweeper, resolve=False)
    if sweeper.get("_target_") != _BASIC_SWEEPER:
        # What the sweeper will try is not known; what stays the same is.
        problems = problems_of(cfg, config_name, strict=False, alone=True)
        _refuse(loader, config_name, _without_sweeps(overrides), problems)
        return
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    parser = OverridesParser.create(config_loader=loader)
    parsed = parser.parse_overrides([*params, *cfg.hydra.overrides.task])
    [jobs] = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    refused: dict[str, None] = {}
    for job in jobs:
        try:
            loader.load_configuration(config_name, [*cfg.hydra.overrides.hydra, *job], RunMode.RUN)
        except ConfigError as error:
            refused.update(dict.fromkeys(str(error).splitlines()))
    if refused:
        raise ConfigError("\n".join(refused))


def _without_sweeps(overrides: Sequence[str]) -> list[str]:
    parser = OverridesParser.create()
    return [o for o in overrides if not parser.parse_override(o).is_sweep_override()]


def problems_of(
    cfg: DictConfig, config_name: str, *, strict: bool, alone: bool = False
) -> list[Problem]:
    """What is wrong with a command's configuration.

    Args:
        cfg: as composed; interpolations that need a run are left alone.
        config_name: the command, or another whose command :func:`composing` has named.
        strict: whether a value without a default is a problem.
        alone: leave out what is only wrong together.
    """
    schema = schema_of(config_name) or schema_of(_command.get())
    if schema is None:
        return []
    problems: list[Problem] = []
    section = _plain(cfg, "", problems, strict)
    section.pop("hydra", None)
    _, found = examine(schema, section, alone=alone)
    return [*problems, *found]


def _plain(node: Any, key: str, problems: list[Problem], strict: bool) -> Any:
    """Plain containers of a configuration but for Hydra's own section."""
    if isinstance(node, DictConfig):
        names: list[Any] = [name for name in node if key or name != "hydra"]
        return {
            name: _value(node, name, f"{key}.{name}" if key else str(name), problems, strict)
            for name in names
        }
    if isinstance(node, ListConfig):
        return [
            _value(node, index, f"{key}[{index}]", problems, strict) for index in range(len(node))
        ]
    return node


def _value(
    node: DictConfig | ListConfig, name: Any, key: str, problems: list[Problem], strict: bool
) -> Any:
    if OmegaConf.is_missing(node, name):
        if strict:
            problems.append(Problem(key, f"{key} has no default: set it, {key}=…"))
        return Unresolved("???")
    try:
        return _plain(node[name], key, problems, strict)
    except InterpolationKeyError as error:
        reason = str(error).partition("\n")[0]
        problems.append(Problem(key, f"{key} cannot be resolved: {reason}"))
    except InterpolationResolutionError:
        # It leads to a value without a default, or to what only a run or its machine knows.
        pass
    return Unresolved("???")


# --- where keys live --------------------------------------------------------------------------


def _places(loader: ConfigLoaderImpl, config_name: str, overrides: Sequence[str]) -> dict[str, str]:
    """The file that every key has its default from."""
    overrides = list(overrides)
    with composing(Purpose.ASK):
        _, repository = loader._parse_overrides_and_create_caching_repo(config_name, overrides)
        defaults = loader.compute_defaults_list(config_name, overrides, RunMode.RUN).defaults
    places: dict[str, str] = {}
    for default in defaults:
        path = default.config_path
        if path is None or path.startswith("hydra"):
            continue
        loaded = repository.load_config(path)
        if loaded is None or not OmegaConf.is_dict(loaded.config):
            continue
        package = default.package or ""
        prefix = "" if package in ("", "_global_") else f"{package}."
        file = _file(loaded.provider, loaded.path, path)
        places |= dict.fromkeys(_keys(OmegaConf.to_container(loaded.config), prefix), file)
    return places


def _file(provider: str, source: str, path: str) -> str:
    # Ours are named as in the documentation, whether there is a checkout or not.
    folder = "conf" if provider == "main" else source.removeprefix("file://")
    return f"{folder}/{path}.yaml"


def _place(places: Mapping[str, str], key: str) -> str:
    """The file of a key, or of the closest section around it."""
    key = key.partition("[")[0]
    while key and key not in places:
        key = key.rpartition(".")[0]
    return places.get(key, "")


def _keys(section: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(section, dict):
        for key, value in section.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")


# --- what Hydra refuses -----------------------------------------------------------------------


def _explained(
    loader: ConfigLoaderImpl, config_name: str, overrides: Sequence[str], error: HydraException
) -> list[str]:
    """A line for everything that is wrong with overrides that Hydra cannot apply.

    Names of group files go first, since they decide which keys there are; then keys, then the
    values of those that remain.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException:
        return _of_hydra(error)
    lines: list[str] = []
    with composing(Purpose.ASK):
        try:
            choices = loader.compute_defaults_list(config_name, [], RunMode.RUN).overrides
        except HydraException:
            return _of_hydra(error)
        groups = {group.partition("@")[0] for group in choices.known_choices}
        chosen, values = [], []
        for override in parsed:
            if override.key_or_group not in groups:
                values.append(override)
            elif line := _wrong_choice(loader, override):
                lines.append(line)
            else:
                chosen.append(override)
        kept = [override.input_line or "" for override in chosen]
        try:
            cfg = loader.load_configuration(config_name, kept, RunMode.RUN)
            places = _places(loader, config_name, kept)
        except HydraException:
            return lines or _of_hydra(error)
        known = list(_keys(_bare(cfg)))
        for override in values:
            key = override.key_or_group
            adds = override.is_add() or override.is_force_add()
            if adds or override.is_hydra_override() or key in known:
                kept.append(override.input_line or "")
            else:
                hint = _nearest_key(loader, key, known, groups, places)
                lines.append(f"Unknown configuration key {key!r}.{hint}")
    if not lines:
        return _of_hydra(error)
    try:
        loader.load_configuration(config_name, kept, RunMode.RUN)
    except ConfigError as more:
        lines += str(more).splitlines()
    return list(dict.fromkeys(lines))


def _bare(cfg: DictConfig) -> Any:
    container = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(container, dict)
    container.pop("hydra", None)
    return container


def _wrong_choice(loader: ConfigLoaderImpl, override: Override) -> str | None:
    group: str = override.key_or_group
    name: Any = override._value
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if override.is_delete() or not isinstance(name, str):
        return None
    options = loader.get_group_options(group, ObjectType.CONFIG)
    if name in options:
        return None
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f" Did you mean {group}={near[0]}?" if near else ""
    return (
        f"{group}={name}: there is no file conf/{group}/{name}.yaml.{hint} "
        f"Known: {', '.join(options)}."
    )


def _nearest_key(
    loader: ConfigLoaderImpl,
    key: str,
    known: Sequence[str],
    groups: set[str],
    places: Mapping[str, str],
) -> str:
    """A hint at the key that was meant, or at the group file that has it."""
    group = key.partition(".")[0]
    elsewhere: dict[str, str] = {}
    for option in loader.get_group_options(group, ObjectType.CONFIG) if group in groups else ():
        loaded = loader.repository.load_config(f"{group}/{option}")
        if loaded is not None:
            keys = _keys(OmegaConf.to_container(loaded.config), f"{group}.")
            elsewhere |= dict.fromkeys((k for k in keys if k not in known), option)
    endings = [k for k in known if k.endswith(f".{key}")]
    near = endings or difflib.get_close_matches(key, [*known, *elsewhere], n=1)
    if not near:
        return ""
    if near[0] in elsewhere:
        name = elsewhere[near[0]]
        return f" {near[0]!r} is a key of {group}={name} (conf/{group}/{name}.yaml)."
    place = f"conf/{near[0]}/" if near[0] in groups else _place(places, near[0])
    return f" Did you mean {near[0]!r}{f' ({place})' if place else ''}?"


def _of_hydra(error: HydraException) -> list[str]:
    """Hydra's own words, and those of the error behind it, without its internals."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error.__cause__, OmegaConfBaseException):
        lines.append(str(error.__cause__).partition("\n")[0])
    return lines
