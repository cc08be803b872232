"""What is said about overrides that cannot be, without a composition for each where that may be."""

from __future__ import annotations

import copy
import functools

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from geopak.cli import CONFIG_DIR, compose
from geopak.composing import problems_of
from geopak.errors import ConfigError


@functools.cache
def _composed(command: str, given: tuple[str, ...]) -> DictConfig:
    return compose(command, given)


def refusal(command: str, overrides: list[str], message: str, given: tuple[str, ...] = ()) -> str:
    """The message with which a command refuses overrides.

    Args:
        command: its name.
        overrides: plain keys are set in one composition that is shared; groups, added keys and
            messages that name a file of ``conf/`` take a composition of their own.
        message: the expected part.
        given: further overrides, which are fine.
    """
    parsed = OverridesParser.create().parse_overrides(overrides)
    groups = any((CONFIG_DIR / p.key_or_group).is_dir() for p in parsed)
    if groups or "(conf" in message or any(o[0] in "+~" for o in overrides):
        with pytest.raises(ConfigError) as caught:
            compose(command, [*given, *overrides])
        return str(caught.value)
    cfg = copy.deepcopy(_composed(command, given))
    for override in parsed:
        OmegaConf.update(cfg, override.key_or_group, override.value(), merge=False)
    return "\n".join(p.sentence() for p in problems_of(cfg, command, strict=False))
