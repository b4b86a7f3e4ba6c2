"""Engines timed in turn, on a clock of the test's own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

from simulated import Clock, SimulatedEngine

from gmf_edge.bench.in_turn import TurnPlan, time_in_turn
from gmf_edge.errors import SpecError

IMAGES = np.zeros((2, 3, 4, 4), np.float32)
PLAN = TurnPlan(warmup_s=0.01, seconds=0.1, rounds=12, block_ms=10.0, quiet_s=0.02)


def test_ratios_are_right_while_the_machine_slows_down() -> None:
    clock = Clock()
    rng = np.random.default_rng(0)

    def slowing(ms: float) -> SimulatedEngine:
        # three times as slow after two seconds, and noise on top
        return SimulatedEngine(clock, "", lambda _, now: ms * (1 + now), noise=0.05, outliers=0.05, on_gpu=False, rng=rng)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    found = time_in_turn(
        {"ours": slowing(1.0), "eager": slowing(2.0), "other": slowing(1.5)}, IMAGES, PLAN, clock=clock, sleep=sleep
    )
    assert found.measure == "host latency"
    assert found.engines["ours"].ratio == 1.0
    for name, factor in (("eager", 2.0), ("other", 1.5)):
        part = found.engines[name]
        assert part.ratio == pytest.approx(factor, rel=0.06)
        assert part.ratio_low <= part.ratio <= part.ratio_high
        assert part.ratio_interval_95 is not None
        assert part.ratio_interval_95[0] <= factor <= part.ratio_interval_95[1]
        # the times themselves tell that the machine was not the same all along
        assert not part.times.steady


def test_every_engine_rests_before_its_turn_and_begins_as_often_as_the_others() -> None:
    clock = Clock()
    order: list[str] = []
    engines = {name: SimulatedEngine(clock, name, 5.0, on_gpu=False) for name in "abc"}
    rests: list[float] = []

    def sleep(seconds: float) -> None:
        rests.append(seconds)
        order.append("|")
        clock.now += seconds

    found = time_in_turn(engines, IMAGES, PLAN, clock=clock, sleep=sleep)
    assert found.rounds >= PLAN.rounds
    assert rests == [PLAN.quiet_s] * (3 * found.rounds)
    # a block of two timed calls and the one that is left out, of one engine
    calls = clock.ran[-9 * (found.rounds) :]
    starts = [calls[9 * number] for number in range(found.rounds)]
    assert starts[:6] == list("abcabc")
    assert found.engines["a"].calls == 2 * found.rounds


def test_the_first_call_of_a_block_is_left_out() -> None:
    clock = Clock()

    class Cold(SimulatedEngine):
        """Slow whenever another engine ran before."""

        def infer(self, images: np.ndarray) -> np.ndarray:  # type: ignore[override,type-arg]
            cold = bool(self.clock.ran) and self.clock.ran[-1] != self.name
            self.overhead_ms = 50.0 if cold else 0.0
            return super().infer(images)

    engines = {name: Cold(clock, name, 1.0, on_gpu=False, overhead_ms=0.0) for name in "ab"}
    found = time_in_turn(engines, IMAGES, PLAN, clock=clock, sleep=lambda seconds: None)
    assert found.engines["b"].times.max_ms == pytest.approx(1.0)


def test_a_gpus_own_times_are_taken_where_all_have_them() -> None:
    clock = Clock()
    fast, slow = SimulatedEngine(clock, "fast", 1.0, overhead_ms=9.0), SimulatedEngine(clock, "slow", 3.0, overhead_ms=0.1)
    found = time_in_turn({"fast": fast, "slow": slow}, IMAGES, PLAN, clock=clock, sleep=lambda seconds: None)
    assert (found.measure, found.engines["slow"].ratio) == ("GPU compute time", pytest.approx(3.0))
    cpu = SimulatedEngine(clock, "cpu", 3.0, on_gpu=False)
    mixed = time_in_turn({"fast": fast, "cpu": cpu}, IMAGES, PLAN, clock=clock, sleep=lambda seconds: None)
    assert mixed.measure == "host latency"
    assert mixed.engines["cpu"].ratio == pytest.approx(0.3)


@pytest.mark.parametrize("settings", [{"rounds": 0}, {"quiet_s": -1.0}, {"seconds": float("nan"), "rounds": 0}])
def test_nonsense_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="in turn"):
        TurnPlan(**settings)  # type: ignore[arg-type]
