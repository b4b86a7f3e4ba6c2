"""Options that several verbs share are fields of a dataclass; a verb takes the dataclass, the command line its fields.

@dataclass(frozen=True)
class ScreenOptions:
    quiet: Quiet = False

def verify(folder: Folder, screen: ScreenOptions) -> None: ...

app.command()(grouped(verify))      # gmf-edge verify FOLDER --quiet
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb as Typer wants it: every field of its dataclass parameters a parameter of its own, with the field's default."""
    hints = get_type_hints(verb, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(verb).parameters.items():
        if name not in groups:
            parameters.append(_keyword(name, hints[name], parameter.default))
            continue
        kinds = get_type_hints(groups[name], include_extras=True)
        parameters += [_keyword(field.name, kinds[field.name], field.default) for field in dataclasses.fields(groups[name])]

    def call(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        verb(**values)

    call.__name__, call.__doc__ = verb.__name__, verb.__doc__
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    missing = default is dataclasses.MISSING or default is inspect.Parameter.empty
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=annotation,
        default=inspect.Parameter.empty if missing else default,
    )
