"""The builder's nested phases become a fraction that never goes back, and an honest time left."""

from __future__ import annotations

import pytest

from gmf_edge.engines.tensorrt.log import OUT_OF_MEMORY_PATTERN, TOO_LITTLE_WORKSPACE_PATTERN
from gmf_edge.engines.tensorrt.progress import BuildProgress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def watched() -> tuple[BuildProgress, list[tuple[float, str]], Clock]:
    shown: list[tuple[float, str]] = []
    clock = Clock()

    def show(fraction: float | None, message: str) -> None:
        assert fraction is not None
        shown.append((fraction, message))

    return BuildProgress(show, clock), shown, clock


def test_a_phase_inside_stands_for_one_step_of_its_parent() -> None:
    progress, shown, _ = watched()
    progress.phase_start("Building Engine", None, 4)
    assert progress.step_complete("Building Engine", 0)
    progress.phase_start("Computing profile", "Building Engine", 10)
    for step in range(5):
        assert progress.step_complete("Computing profile", step)
    # one step of four is done, and half of the second
    assert shown[-1][0] == pytest.approx(0.25 + 0.5 / 4)
    progress.phase_finish("Computing profile")
    progress.step_complete("Building Engine", 1)
    assert shown[-1][0] == pytest.approx(0.5)
    progress.phase_finish("Building Engine")
    assert shown[-1][0] == 1.0


def test_the_fraction_never_goes_back() -> None:
    progress, shown, _ = watched()
    progress.phase_start("a", None, 2)
    progress.step_complete("a", 0)
    progress.phase_start("inner", "a", 3)
    progress.phase_finish("inner")
    progress.phase_start("inner", "a", 100)
    progress.step_complete("unknown phase", 4)
    fractions = [fraction for fraction, _ in shown]
    assert fractions == sorted(fractions)
    assert max(fractions) <= 1.0


def test_parallel_phases_count_at_most_one_step() -> None:
    progress, shown, _ = watched()
    progress.phase_start("top", None, 2)
    for name in ("x", "y", "z"):
        progress.phase_start(name, "top", 1)
        progress.step_complete(name, 0)
    assert shown[-1][0] == pytest.approx(0.5)


def test_the_time_left_follows_the_clock() -> None:
    progress, shown, clock = watched()
    progress.phase_start("top", None, 10)
    clock.now = 1.0
    progress.step_complete("top", 0)
    assert "left" not in shown[-1][1], "one second tells nothing"
    clock.now = 20.0
    progress.step_complete("top", 1)
    assert shown[-1][1].endswith("about 80 s left")
    clock.now = 100.0
    progress.step_complete("top", 1)
    assert shown[-1][1].endswith("about 7 min left")


def test_an_exception_in_the_display_stops_the_build_and_is_kept() -> None:
    def show(fraction: float | None, message: str) -> None:
        raise KeyboardInterrupt

    progress = BuildProgress(show, Clock())
    progress.phase_start("top", None, 2)
    assert progress.step_complete("top", 0) is False
    assert isinstance(progress.stopped_by, KeyboardInterrupt)


@pytest.mark.parametrize(
    "message",
    [
        "[virtualMemoryBuffer.cpp::resizePhysical::154] Error Code 2: OutOfMemory (Requested size was 16777216 bytes.)",
        "Cuda Runtime (out of memory)",
        "1: [defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)",
        "Requested amount of GPU memory (1073741824 bytes) could not be allocated.",
    ],
)
def test_out_of_memory_is_recognised(message: str) -> None:
    assert OUT_OF_MEMORY_PATTERN.search(message)


def test_a_missing_tactic_is_not_out_of_memory() -> None:
    message = "10: Could not find any implementation for node {ForeignNode[a...b]} due to insufficient workspace."
    assert TOO_LITTLE_WORKSPACE_PATTERN.search(message)
    assert not OUT_OF_MEMORY_PATTERN.search(message)
