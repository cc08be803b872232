"""How every command finds its configuration, composes it and reports errors."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.defaults_list import Overrides
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from geopak.errors import ConfigError, GeopakError, nearest_name

PACKAGE_DIR = Path(__file__).resolve().parent
_CHECKOUT = PACKAGE_DIR.parent.parent
IN_CHECKOUT = (_CHECKOUT / "conf" / "train.yaml").is_file()
# A wheel carries conf/ inside the package; a checkout has it beside src/.
CONFIG_DIR = _CHECKOUT / "conf" if IN_CHECKOUT else PACKAGE_DIR / "conf"


def home() -> Path:
    """Folder that holds ``data/`` and ``outputs/``.

    ``$GEOPAK_HOME`` if set, else the checkout, else (installed from a wheel) the working directory.
    """
    if os.environ.get("GEOPAK_HOME"):
        return Path(os.environ["GEOPAK_HOME"]).expanduser().resolve()
    return _CHECKOUT if IN_CHECKOUT else Path.cwd()


def _accept_integer_group_choices() -> None:
    """Lets ``phase=2`` choose the file ``phase/2.yaml``.

    Hydra parses the 2 as an integer and refuses it for a config group. Every way in (command line,
    multirun, sweeper, compose API) passes through ``Overrides``, so it is mended there.
    """
    original = Overrides.__init__
    if getattr(original, "_geopak", False):
        return

    @functools.wraps(original)
    def init(self: Overrides, repo: Any, overrides_list: list[Any]) -> None:
        for override in overrides_list:
            value = override._value
            is_integer = isinstance(value, int) and not isinstance(value, bool)
            if is_integer and repo.group_exists(override.key_or_group):
                override._value = str(value)
        original(self, repo, overrides_list)

    init._geopak = True  # type: ignore[attr-defined]
    Overrides.__init__ = init  # type: ignore[method-assign]


def _register_resolvers() -> None:
    OmegaConf.register_new_resolver("geopak.home", lambda: str(home()), replace=True)
    OmegaConf.register_new_resolver(
        "geopak.shipped", lambda name: str(PACKAGE_DIR / "assets" / name), replace=True
    )


_accept_integer_group_choices()
_register_resolvers()


def compose(config_name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration that a command would get, for tests and notebooks.

    Args:
        config_name: ``train``, ``prepare``, ``evaluate``, ``predict`` or ``synthetic``.
        overrides: as typed on the command line.

    Raises:
        ConfigError: an override that cannot be applied; the nearest known key is named.
    """
    with _hydra_initialised():
        try:
            return hydra.compose(config_name, overrides=list(overrides))
        except HydraException as error:
            hints = "".join(f"\n{hint}" for hint in unknown_keys(config_name, overrides))
            raise ConfigError(f"{error}{hints}") from error


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


def unknown_keys(config_name: str, overrides: Sequence[str]) -> list[str]:
    """A line for every override whose key the configuration does not have.

    Config groups are applied first, since they decide which keys there are.
    """
    groups: list[str] = []
    values: list[str] = []
    for override in overrides:
        key, separator, _ = override.partition("=")
        if not separator or key.startswith(("-", "+", "~", "hydra")):
            continue
        (groups if (CONFIG_DIR / key.partition("@")[0]).is_dir() else values).append(override)
    try:
        with _hydra_initialised():
            cfg = hydra.compose(config_name, overrides=groups)
    except HydraException:
        # A group that does not exist: Hydra's own message lists the choices.
        return []
    known = list(_keys(OmegaConf.to_container(cfg, resolve=False)))
    lines = []
    for override in values:
        key = override.partition("=")[0]
        if key not in known:
            lines.append(f"Unknown configuration key {key!r}.{nearest_name(key, known)}")
    return lines


def _keys(section: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(section, dict):
        for key, value in section.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], Any]]:
    """Makes a ``main()`` out of a function of the composed configuration.

    The function's return value is passed on, so that sweepers can optimise it. A
    :class:`GeopakError` ends the program with its message and exit status 2, no traceback.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], Any]:
        @functools.wraps(function)
        def reported(cfg: DictConfig) -> Any:
            try:
                return function(cfg)
            except GeopakError as error:
                logging.getLogger("geopak").debug("traceback", exc_info=True)
                print(f"\nerror: {error}", file=sys.stderr)
                raise SystemExit(2) from None

        run = hydra.main(str(CONFIG_DIR), config_name, version_base="1.3")(reported)

        @functools.wraps(function)
        def main() -> Any:
            try:
                return run()
            except SystemExit as stop:
                # Hydra ends with 1 when it cannot compose; a key mistyped deserves a hint.
                if stop.code == 1:
                    for line in unknown_keys(config_name, sys.argv[1:]):
                        print(line, file=sys.stderr)
                raise

        return main

    return decorate
