"""How every command finds its configuration, composes it and reports errors."""

from __future__ import annotations

import functools
import glob
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import hydra._internal.hydra
import hydra._internal.utils
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import Overrides
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from geopak.composing import Purpose, check_compositions, composing
from geopak.errors import ConfigError, GeopakError

PACKAGE_DIR = Path(__file__).resolve().parent
_CHECKOUT = PACKAGE_DIR.parent.parent
IN_CHECKOUT = (_CHECKOUT / "conf" / "train.yaml").is_file()
# A wheel carries conf/ inside the package; a checkout has it beside src/.
CONFIG_DIR = _CHECKOUT / "conf" if IN_CHECKOUT else PACKAGE_DIR / "conf"
# Keys whose values are names of files, folders or runs, so that 1234 is text there; and those of
# them that name what is yet to be written.
_INPUTS = {
    "images", "ckpt", "root", "prepared", "shards", "init_from", "resume_from", "checkpoint",
    "baseline", "cells",
}  # fmt: skip
_OUTPUTS = {"map", "out", "name", "prepared_out"}


def home() -> Path:
    """Folder that holds ``data/`` and ``outputs/``.

    ``$GEOPAK_HOME`` if set, else the checkout, else (installed from a wheel) the working directory.
    """
    if os.environ.get("GEOPAK_HOME"):
        return Path(os.environ["GEOPAK_HOME"]).expanduser().resolve()
    return _CHECKOUT if IN_CHECKOUT else Path.cwd()


def _mend_group_overrides() -> None:
    """Lets ``phase=2`` choose the file ``phase/2.yaml``, and ``split=val`` be a plain value.

    Hydra parses the 2 as an integer and refuses it for a config group; and it takes a key for a
    config group wherever there is one of that name, though the command has only a value so named.
    Every way in (command line, multirun, sweeper, compose API) passes through ``Overrides``, so
    both are mended there.
    """
    if getattr(Overrides.__init__, "_geopak", False):
        return
    original_init, original_check = Overrides.__init__, Overrides.ensure_overrides_used

    @functools.wraps(original_init)
    def init(self: Overrides, repo: Any, overrides_list: list[Any]) -> None:
        for override in overrides_list:
            value = override._value
            if not repo.group_exists(override.key_or_group):
                continue
            if isinstance(value, int) and not isinstance(value, bool):
                override._value = str(value)
            elif isinstance(value, (bool, float)):
                raise ConfigCompositionException(
                    f"{override.input_line}: a config group takes the name of a file in "
                    f"conf/{override.key_or_group}/."
                )
            elif value is None and not override.is_delete():
                group = override.key_or_group
                raise ConfigCompositionException(
                    f"{group}=null: a config group takes the name of a file in conf/{group}/, and "
                    f"~{group} takes it out."
                )
        original_init(self, repo, overrides_list)
        typed = {override.get_key_element(): override for override in overrides_list}
        self._typed = typed  # type: ignore[attr-defined]

    @functools.wraps(original_check)
    def ensure_overrides_used(self: Overrides) -> None:
        for key, state in list(self.override_metadata.items()):
            is_choice = key.partition("@")[0] in self.known_choices_per_group
            if state.external_override and not state.used and not is_choice:
                # A group of another command: here it is a key, or unknown, as the merge will say.
                self.config_overrides.append(self._typed[key])  # type: ignore[attr-defined]
                del self.override_metadata[key], self.override_choices[key]
        original_check(self)

    init._geopak = True  # type: ignore[attr-defined]
    Overrides.__init__ = init  # type: ignore[method-assign]
    Overrides.ensure_overrides_used = ensure_overrides_used  # type: ignore[method-assign]


def _hasten_help() -> None:
    """Lets ``--help`` list the config groups without a copy of everything for every group.

    For each of some hundred questions which groups and files there are, Hydra copies its whole
    store, to apply overrides to the copy: two thirds of the time that ``--help`` takes. Where
    there are none to apply, the original knows the answer, and it is asked everything twice.
    """
    original = ConfigLoaderImpl.get_group_options
    if getattr(original, "_geopak", False):
        return

    @functools.wraps(original)
    def get_group_options(
        self: ConfigLoaderImpl,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        if config_name is not None or overrides:
            return original(self, group_name, results_filter, config_name, overrides)
        known = self.__dict__.setdefault("_geopak_groups", {})
        question = (group_name, results_filter)
        if question not in known:
            known[question] = self.repository.get_group_options(group_name, results_filter)
        return list(known[question])

    get_group_options._geopak = True  # type: ignore[attr-defined]
    ConfigLoaderImpl.get_group_options = get_group_options  # type: ignore[method-assign]


def _register_resolvers() -> None:
    OmegaConf.register_new_resolver("geopak.home", lambda: str(home()), replace=True)
    OmegaConf.register_new_resolver(
        "geopak.shipped", lambda name: str(PACKAGE_DIR / "assets" / name), replace=True
    )
    OmegaConf.register_new_resolver("geopak.choices", _choices, replace=True)


def _choices(group: str) -> str:
    """Names of a config group's files, for ``--help``; of folders how many there are in each."""
    folder = CONFIG_DIR / group
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    inner = sorted(path for path in folder.iterdir() if path.is_dir())
    names += [f"{path.name}/ ({len(list(path.glob('*.yaml')))})" for path in inner]
    return ", ".join(names)


def _pass_on_refusals() -> None:
    """Lets errors of the input through to :func:`entry_point`: Hydra would print them with a trace.

    With ``HYDRA_FULL_ERROR=1`` all errors are shown in full, as ever.
    """
    original = hydra._internal.utils.run_and_report
    if getattr(original, "_geopak", False):
        return

    @functools.wraps(original)
    def run_and_report(func: Callable[[], Any]) -> Any:
        refused: list[Exception] = []

        def run() -> Any:
            try:
                return func()
            except (GeopakError, HydraException) as error:
                refused.append(error)

        result = original(run)
        if refused:
            raise refused[0]
        return result

    run_and_report._geopak = True  # type: ignore[attr-defined]
    # Imported by name in the second.
    for module in (hydra._internal.utils, hydra._internal.hydra):
        vars(module)["run_and_report"] = run_and_report


_mend_group_overrides()
_hasten_help()
check_compositions()
_pass_on_refusals()
_register_resolvers()


# Options of Hydra that take the argument after them.
_WITH_VALUE = {
    "-c", "--cfg", "-p", "--package", "-i", "--info", "-cp", "--config-path", "-cn",
    "--config-name", "-cd", "--config-dir", "--experimental-rerun",
}  # fmt: skip


def name_positional(arguments: Sequence[str], key: str) -> list[str]:
    """The arguments, with those that are neither overrides nor options made the list of a key.

    Args:
        arguments: as typed. A path that exists is one even with a ``=`` in it, as the folders of a
            sweep may have.
        key: of the list, which Hydra then gets as ``key=['…', …]``.
    """
    rest: list[str] = []
    items: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        folder, separator, _ = argument.partition("=")
        is_path = os.sep in folder and _names_file(argument)
        is_deletion = argument.startswith("~") and os.sep not in argument
        is_option = argument.startswith(("-", "+")) or before in _WITH_VALUE or is_deletion
        if is_option or (separator and not is_path):
            rest.append(argument)
        else:
            items.append(quoted(os.path.expanduser(argument)))
    return [*rest, f"{key}=[{','.join(items)}]"] if items else rest


def quote_overrides(arguments: Sequence[str]) -> list[str]:
    """The arguments, with values in quotes that Hydra's grammar has no place for otherwise.

    File names are full of what the grammar refuses (``IMG (1).jpg``, ``é.jpg``, ``it's.jpg``) or
    takes for something else (``1234``, ``a, b.jpg``). What Hydra parses stays as typed, but for
    files that would lose their name.

    Args:
        arguments: as typed, options such as ``-m`` included.
    """
    multirun = any(
        a in ("-m", "--multirun") or a.lower() == "hydra.mode=multirun" for a in arguments
    )
    return [_quote_override(a, multirun) for a in arguments]


def _quote_override(argument: str, multirun: bool) -> str:
    key, separator, value = argument.partition("=")
    if not separator or argument.startswith("-"):
        return argument
    override = _parse(argument)
    if override is None:
        result = f"{key}={_quote_value(value, multirun)}"
        # A key that does not parse either: Hydra explains that best.
        return argument if _parse(result) is None else result
    name = key.lstrip("+").rpartition(".")[2]
    if name not in _INPUTS | _OUTPUTS:
        return argument
    parsed = override._value
    is_number = isinstance(parsed, (int, float)) and not isinstance(parsed, bool)
    is_sweep = override.is_sweep_override() and not multirun
    changed = parsed is not None and str(parsed) != value
    if is_number or (changed and _names_file(value)) or (is_sweep and name in _OUTPUTS):
        return f"{key}={quoted(value)}"
    return argument


def _quote_value(value: str, multirun: bool) -> str:
    """The value, or the items of a list or sweep in it, in quotes where they need them."""
    is_list = value.startswith("[") and value.endswith("]")
    if _names_file(value) or not (is_list or (multirun and "," in value)):
        return quoted(os.path.expanduser(value))
    items = [item.strip() for item in (value[1:-1] if is_list else value).split(",")]
    safe = [i if _parse(f"x={i}") else quoted(os.path.expanduser(i)) for i in items]
    return f"[{','.join(safe)}]" if is_list else ",".join(safe)


def quoted(text: str) -> str:
    """A text in the quotes of Hydra's grammar."""
    # In Hydra's quotes a backslash means something before a quote or at the end only.
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return "'" + escaped + "\\" * trailing + "'"


def _parse(override: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def _names_file(value: str) -> bool:
    path = os.path.expanduser(value)
    try:
        return os.path.exists(path) or next(glob.iglob(path, recursive=True), None) is not None
    except (OSError, ValueError, re.error):
        return False


def as_geopak_error(error: Exception) -> GeopakError | None:
    """What a user can mend about an error, in words; ``None``: it is a defect."""
    if isinstance(error, GeopakError):
        # A loader process hands on its error with the traceback as its message.
        if str(error).startswith(f"Caught {type(error).__name__} in "):
            name = f"{type(error).__module__}.{type(error).__qualname__}: "
            return type(error)(str(error).rpartition(name)[2].strip())
        return error
    if isinstance(error, OmegaConfBaseException):
        return _as_config_error(error)
    # Matched by name: importing Lightning takes seconds.
    if type(error).__name__ == "MisconfigurationException":
        return ConfigError(
            f"Lightning cannot work like this: {error} See the trainer.* keys; trainer=auto takes "
            "what the machine has, trainer=cpu needs no GPU."
        )
    return None


def _as_config_error(error: OmegaConfBaseException) -> ConfigError | None:
    reason = str(error).partition("\n")[0]
    missing = re.search(r"Missing mandatory value: (\S+)", reason)
    if isinstance(error, MissingMandatoryValue) or missing:
        key = missing[1] if missing else error.full_key
        return ConfigError(f"{key} has no default: set it, {key}=….")
    if isinstance(error, InterpolationResolutionError):
        place = error.full_key or "A value of the configuration"
        return ConfigError(f"{place} cannot be resolved: {reason}.")
    if isinstance(error, (ConfigAttributeError, ConfigKeyError)):
        return ConfigError(f"The configuration lacks {error.full_key}.")
    return None


def compose(config_name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration that a command would get, for tests and notebooks.

    Args:
        config_name: of a file in ``conf/``: ``train``, ``prepare``, ``evaluate``, ``compare``, ….
        overrides: as typed on the command line.

    Raises:
        ConfigError: overrides that cannot be applied, values that are refused, or combinations of
            them; with the nearest known name and the file that a key lives in.
    """
    overrides = quote_overrides(overrides)
    with _hydra_initialised():
        try:
            return hydra.compose(config_name, overrides=overrides)
        except HydraException as error:
            raise ConfigError(str(error)) from error


@contextmanager
def _hydra_initialised() -> Iterator[None]:
    """Hydra ready to compose; whatever was initialised before is so again afterwards."""
    instance = GlobalHydra.instance()
    before = instance.hydra
    instance.clear()
    try:
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            yield
    finally:
        instance.hydra = before


def split_jobs(arguments: Sequence[str]) -> list[list[str]]:
    """The overrides of every single run that a command's arguments ask for, in their order.

    Args:
        arguments: as typed. With ``-m`` or ``--multirun`` values such as ``phase=0,1,2`` are swept.

    Raises:
        ConfigError: an argument that is no override.
    """
    quoted = quote_overrides(arguments)
    overrides = [a for a in quoted if a not in ("-m", "--multirun")]
    if option := next((a for a in overrides if a.startswith("-")), None):
        raise ConfigError(f"{option} is not an override. Only key=value and -m can be given here.")
    if len(overrides) == len(quoted):
        return [overrides]
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    if globs := next((a for a in overrides if re.search(r"=\s*glob\(", a)), None):
        raise ConfigError(f"{globs}: name the values, glob() is not known here.")
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        [jobs] = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise ConfigError(str(error)) from error
    return [list(job) for job in jobs]


def _purpose_of(arguments: Sequence[str]) -> Purpose:
    """What a command is to do with its configuration, by its options."""
    asked, _ = hydra._internal.utils.get_args_parser().parse_known_args(list(arguments))
    if asked.help or asked.hydra_help or asked.shell_completion:
        return Purpose.ASK
    return Purpose.LOOK if asked.cfg or asked.info else Purpose.RUN


def _refusal(error: Exception) -> SystemExit:
    """The end of a command that cannot do what it is asked: the reason is printed, status 2."""
    print(f"\nerror: {error}", file=sys.stderr)
    return SystemExit(2)


def _with_own_options(config_name: str, arguments: list[str]) -> list[str]:
    """The arguments, with what ``--rerun RUN_FOLDER`` and ``--dry-run`` stand for instead."""
    if config_name == "collect":
        return ["dry_run=true" if a == "--dry-run" else a for a in arguments]
    if config_name != "train" or not any(a.partition("=")[0] == "--rerun" for a in arguments):
        return arguments
    from geopak.rerun import hydra_arguments

    return hydra_arguments(arguments)


def entry_point(
    config_name: str, positional: str | None = None
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], Any]]:
    """Makes a ``main()`` out of a function of the composed configuration.

    Arguments that are no overrides become the list ``positional``, where a command has one.

    The function's return value is passed on, so that sweepers can optimise it. A
    :class:`GeopakError` ends the program with its message and exit status 2, no traceback.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], Any]:
        @functools.wraps(function)
        def reported(cfg: DictConfig) -> Any:
            try:
                return function(cfg)
            except KeyboardInterrupt:
                print("\ninterrupted", file=sys.stderr)
                raise SystemExit(130) from None
            except Exception as error:
                mendable = as_geopak_error(error)
                if mendable is None:
                    raise
                logging.getLogger("geopak").debug("traceback", exc_info=True)
                raise _refusal(mendable) from None

        run = hydra.main(str(CONFIG_DIR), config_name, version_base="1.3")(reported)

        @functools.wraps(function)
        def main() -> Any:
            # Hydra and the processes that Lightning starts read the arguments from here.
            typed = sys.argv
            if typed[1:] in (["-sc", "install=bash"], ["--shell-completion", "install=bash"]):
                # Hydra's own knows no python -m.
                print((PACKAGE_DIR / "assets" / "completion.bash").read_text(encoding="utf-8"))
                return None
            try:
                arguments = name_positional(typed[1:], positional) if positional else typed[1:]
                sys.argv = [*typed[:1], *quote_overrides(_with_own_options(config_name, arguments))]
                with composing(_purpose_of(sys.argv[1:]), config_name):
                    return run()
            except (GeopakError, HydraException) as error:
                if os.environ.get("HYDRA_FULL_ERROR") == "1":
                    raise
                raise _refusal(error) from None
            finally:
                sys.argv = typed

        return main

    return decorate
