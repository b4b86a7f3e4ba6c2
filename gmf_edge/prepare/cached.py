"""One stage of this half: a function of content, skipped with a word where equal inputs have been through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gmf_edge.artifact import Stage, run_stage
from gmf_edge.engines.protocol import Progress


def cached_stage(
    name: str, inputs: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]], title: str, progress: Progress
) -> Stage:
    """gmf_edge.artifact.run_stage, saying so where the result came from the cache; `title` is what the user knows it by."""
    return told_of(run_stage(name, inputs, make), title, progress)


def told_of(stage: Stage, title: str, progress: Progress) -> Stage:
    """The stage, after a word where it came from the cache."""
    if stage.reused:
        progress(None, f"{title}: unchanged, taken from the cache")
    return stage
