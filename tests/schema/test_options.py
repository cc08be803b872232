"""The checker: every kind of type, all problems at once, the closest of several sections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from geopak.errors import ConfigError
from geopak.options import Count, PartOf, Problem, Range, Share, Unresolved, examine, options


@dataclass(frozen=True)
class Csv:
    kind: Literal["csv"]


@dataclass(frozen=True)
class Wandb:
    kind: Literal["wandb"]
    project: str


@dataclass(frozen=True)
class Part:
    size: Count = 1
    share: Share | None = None


@dataclass(frozen=True)
class Whole:
    number: float
    name: str
    part: Part
    logger: Csv | Wandb | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    many: tuple[str, ...] = ()
    parts: list[Part] = field(default_factory=list)
    by_name: Mapping[Literal["a", "b"], int] = field(default_factory=dict)
    some: Annotated[dict[str, Any], PartOf(Part, without=("share",))] = field(default_factory=dict)
    choice: bool | Literal["auto"] = "auto"
    angle: Annotated[float, Range(above=-1, below=1)] = 0.0

    def __post_init__(self) -> None:
        if self.number == 13:
            raise ConfigError("whole.number=13 is unlucky. Take another.")

    def problems(self) -> list[Problem]:
        both = self.number < 0 and self.name == "positive"
        return [Problem("whole.name", "whole.name does not suit")] if both else []


GOOD: dict[str, Any] = {"number": 1, "name": "x", "part": {"size": 2}}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("number", "1", "whole.number='1' must be a number."),
        ("number", True, "whole.number=true must be a number."),
        ("number", float("nan"), "whole.number=nan must be a number."),
        ("number", 13, "whole.number=13 is unlucky. Take another."),
        ("name", 5, "whole.name=5 must be a name."),
        ("part", [1], "whole.part=[1] must be a section {key: value, …}."),
        ("part", {"size": 0}, "whole.part.size=0 must be at least 1."),
        ("part", {"size": 1.5}, "whole.part.size=1.5 must be an integer at least 1."),
        ("part", {"share": 2}, "whole.part.share=2 must be at least 0 and at most 1."),
        ("part", {"share": "x"},
         "whole.part.share='x' must be a number at least 0 and at most 1 or null."),
        ("part", {"sise": 1}, "whole.part.sise is not an option. Did you mean 'size'? "
                              "Known: size, share."),
        ("logger", {"kind": "cvs"}, "whole.logger.kind='cvs' must be csv. Did you mean 'csv'?"),
        ("logger", {"kind": "wandb"}, "The configuration lacks whole.logger.project."),
        ("logger", "csv", "whole.logger='csv' must be a section {key: value, …} or null."),
        ("pair", [1, 2, 3], "whole.pair=[1, 2, 3] must be a list of 2 numbers."),
        ("many", "x", "whole.many='x' must be a list of names."),
        ("many", ["x", 1], "whole.many=['x', 1] must be a list of names."),
        ("parts", [{}, {"size": -1}], "whole.parts[1].size=-1 must be at least 1."),
        ("by_name", {"c": 1}, "whole.by_name.c is not an option. Known: a, b."),
        ("by_name", {"a": "1"}, "whole.by_name.a='1' must be an integer."),
        ("some", {"share": 1}, "whole.some.share is not an option. Known: size."),
        ("some", {"size": "x"}, "whole.some.size='x' must be an integer at least 1."),
        ("choice", "atuo", "whole.choice='atuo' must be true or false or auto. "
                           "Did you mean 'auto'?"),
        ("angle", 1, "whole.angle=1 must be above -1 and below 1."),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_by_key_value_and_what_it_must_be(
    key: str, value: Any, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        options(Whole, GOOD | {key: value}, "whole")
    assert str(caught.value) == message


def test_a_good_section_becomes_dataclasses_and_tuples() -> None:
    section = GOOD | {
        "logger": {"kind": "wandb", "project": "p"},
        "pair": [1, 2.5],
        "many": ["x", "y"],
        "parts": [{"size": 3}],
        "by_name": {"b": 2},
        "some": {"size": 4},
        "choice": False,
    }
    assert options(Whole, section, "whole") == Whole(
        1, "x", Part(2), Wandb("wandb", "p"), (1, 2.5), ("x", "y"), [Part(3)], {"b": 2},
        {"size": 4}, False,
    )  # fmt: skip


def test_all_problems_are_told_at_once_and_combinations_only_after_them() -> None:
    with pytest.raises(ConfigError) as caught:
        options(Whole, {"number": "a", "nam": "x", "part": {"size": "b"}}, "whole")
    lines = str(caught.value).splitlines()
    keys = [line.partition(" ")[0].partition("=")[0] for line in lines]
    assert keys == ["whole.number", "whole.nam", "whole.part.size", "The"]
    together = GOOD | {"number": -1, "name": "positive"}
    with pytest.raises(ConfigError, match="does not suit"):
        options(Whole, together, "whole")
    built, problems = examine(Whole, together, "whole", alone=True)
    assert built is not None
    assert problems == []


def test_what_is_not_known_yet_is_no_problem() -> None:
    open_text = GOOD | {"name": Unresolved("???")}
    built, problems = examine(Whole, open_text, "whole")
    assert (built is not None, problems) == (True, [])
    open_number = GOOD | {"number": Unresolved("???"), "part": {"size": "x"}}
    built, problems = examine(Whole, open_number, "whole")
    assert built is None
    assert [problem.key for problem in problems] == ["whole.part.size"]
