"""Options that are shared by value: the fields of a verb's dataclasses are its options."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer

from gmf_edge.cli import app
from gmf_edge.cli.grouped import grouped
from gmf_edge.cli.options import BundleOptions, CalibrationOptions, EngineOptions, ScreenOptions
from gmf_edge.spec import BuildSpec

Speed = Annotated[int, typer.Option("--speed", help="How fast.")]


@dataclass(frozen=True)
class Motion:
    speed: Speed = 3
    backwards: bool = False


def move(place: str, motion: Motion, twice: bool = False) -> None:
    """Go there."""
    seen.append((place, motion, twice))


seen: list[tuple[str, Motion, bool]] = []


def test_a_verb_is_called_with_its_dataclasses() -> None:
    seen.clear()
    grouped(move)(place="home", speed=7, backwards=True, twice=False)
    assert seen == [("home", Motion(7, True), False)]


def test_the_command_line_sees_the_fields_with_their_spelling_and_defaults() -> None:
    parameters = inspect.signature(grouped(move)).parameters
    assert list(parameters) == ["place", "speed", "backwards", "twice"]
    assert parameters["speed"].annotation == Speed
    assert [parameters[name].default for name in ("speed", "backwards", "twice")] == [3, False, False]
    assert parameters["place"].default is inspect.Parameter.empty
    assert grouped(move).__doc__ == "Go there."


def test_an_option_has_one_spelling_in_every_verb() -> None:
    command = typer.main.get_command(app)
    spellings: dict[str, set[tuple[str, ...]]] = {}
    for verb in command.commands.values():  # type: ignore[attr-defined]
        for parameter in verb.params:
            spellings.setdefault(parameter.name, set()).add(tuple(parameter.opts))
    # a folder's --output and calibrate's file are written alike; bench's batch and inspect's layers exist once
    assert {name for name, found in spellings.items() if len(found) > 1} == set()


@pytest.mark.parametrize("group", [BundleOptions, CalibrationOptions, EngineOptions, ScreenOptions])
def test_every_group_has_defaults(group: type) -> None:
    assert group() == group()


def test_the_defaults_of_the_command_line_are_those_of_the_library() -> None:
    assert BundleOptions().spec() == BuildSpec()
