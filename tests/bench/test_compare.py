"""The faster engine is chosen where it is clearly faster by the margin; the rates of wrong answers, on simulated engines."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

from simulated import Clock, SimulatedEngine

from gmf_edge.bench import compare as module
from gmf_edge.bench.compare import NO, UNCLEAR, YES, Comparison, TimingPlan, compare_engines, rank_engines, refused
from gmf_edge.errors import SpecError
from gmf_edge.spec import BatchProfile

NAMES = ("INT8", "FP16")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "device_state", lambda: None)


def compared(candidate_ms: Any, baseline_ms: Any, profile: BatchProfile | None = None, **settings: Any) -> Comparison:
    engine = {name: settings.pop(name) for name in ("noise", "outliers", "on_gpu", "overhead_ms", "rng") if name in settings}
    engine.setdefault("rng", np.random.default_rng(0))  # one for both: their noise is not the same
    clock = settings.pop("clock", Clock())
    settings.setdefault("sleep", lambda seconds: None)
    candidate, baseline = SimulatedEngine(clock, "c", candidate_ms, **engine), SimulatedEngine(clock, "b", baseline_ms, **engine)
    return compare_engines(
        candidate, baseline, names=NAMES, profile=profile or BatchProfile(1, 1, 1), image_size=(4, 4), clock=clock, **settings
    )


def test_a_clear_gain_is_accepted_and_the_reason_has_the_figures() -> None:
    found = compared(4.0, 6.0)
    assert (found.accepted, found.answer, found.within_gate) == (True, YES, True)
    (batch,) = found.batches
    assert (batch.candidate_ms, batch.baseline_ms) == (pytest.approx(4.0), pytest.approx(6.0))
    assert batch.speedup == batch.speedup_low == batch.speedup_high == pytest.approx(1.5)
    assert found.reason == (
        "INT8 is faster: INT8 4.00 ms, FP16 6.00 ms at batch 1, 1.50 times (1.50 to 1.50, margin 1.05), by GPU compute time"
    )
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (written["accepted"], written["batches"]["1"]["rounds"], written["confidence"]) == (True, batch.rounds, 0.99)


@pytest.mark.parametrize("baseline_ms", [1.0, 4.0, 4.1])
def test_as_fast_or_slower_is_not_worth_it(baseline_ms: float) -> None:
    found = compared(4.0, baseline_ms)
    assert (found.accepted, found.answer) == (False, NO)
    assert "not worth it on this machine, FP16 stays" in found.reason


def test_a_gain_at_the_margin_in_noise_is_no_clear_difference_and_the_baseline_stays() -> None:
    found = compared(4.0, 4.2, noise=0.08, gpu_plan=TimingPlan(0.0, 0.0, 30, 1.0))
    assert (found.accepted, found.answer) == (False, UNCLEAR)
    assert found.reason.startswith("no clear difference on this machine, FP16 stays: ")
    low, high = found.batches[0].speedup_low, found.batches[0].speedup_high
    assert low is not None
    assert high is not None
    assert low < 1.05 < high


def test_rounds_are_added_while_the_answer_is_unclear_and_the_budget_lasts() -> None:
    brief = compared(4.0, 4.3, noise=0.08, gpu_plan=TimingPlan(0.0, 0.0, 8, 0.0))
    patient = compared(4.0, 4.3, noise=0.08, gpu_plan=TimingPlan(0.0, 0.0, 8, 1e6))
    assert (brief.batches[0].rounds, patient.answer) == (8, YES)
    assert patient.batches[0].rounds > 8


def test_no_new_round_begins_after_the_budget() -> None:
    clock = Clock()
    found = compared(4.0, 4.2, noise=0.08, clock=clock, gpu_plan=TimingPlan(0.0, 0.0, 8, 5.0))
    assert found.batches[0].rounds > 8
    assert clock.now < 7.0


def test_the_margin_is_the_callers() -> None:
    assert compared(4.0, 6.0, margin=1.45).accepted
    assert not compared(4.0, 6.0, margin=1.55).accepted


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan])
def test_a_margin_that_is_none_is_refused(margin: float) -> None:
    with pytest.raises(SpecError):
        compared(1.0, 1.0, margin=margin)


def test_both_are_warm_before_anything_is_timed_and_blocks_take_turns_in_the_order_abba() -> None:
    clock = Clock()
    plan = TimingPlan(warmup_s=0.5, seconds=0.0, rounds=8, budget_s=0.0, fewest_calls=3, most_calls=3)
    compared(1.0, 1.0, clock=clock, gpu_plan=plan)
    ran = clock.ran[: -2 * module.HOST_CALLS]
    rounds = ran[-4 * 8 :]
    assert "".join(rounds) == ("bccb" + "cbbc") * 4
    before = ran[: -4 * 8]
    # half a second of calls of a millisecond each, two a call of compute_times_ms
    assert before.count("c") >= 250
    assert before.count("b") >= 250


def test_two_seconds_and_a_hundred_rounds_go_by_on_a_gpu() -> None:
    clock = Clock()
    found = compared(0.01, 0.02, clock=clock)
    assert clock.now >= 2 * 0.5 + 2.0
    assert found.batches[0].rounds >= 100
    assert found.batches[0].calls == 20


def test_every_batch_size_is_timed_for_two_seconds() -> None:
    clock = Clock()
    found = compared(1.0, 1.5, BatchProfile(1, 4, 32), clock=clock)
    assert [batch.batch for batch in found.batches] == [4, 1, 32]
    assert all(batch.rounds * batch.calls * 2 * (1.0 + 1.5) >= 2000 for batch in found.batches)
    assert clock.now >= 3 * (2 * 0.5 + 2.0)


def test_what_an_engine_finds_while_it_is_timed_is_noted() -> None:
    class Uncaptured(SimulatedEngine):
        def compute_times_ms(self, images: Any, count: int) -> Any:
            self.facts = dataclasses.replace(self.facts, notes=("portable graph", "no CUDA graph could be captured"))
            return super().compute_times_ms(images, count)

    clock = Clock()
    candidate, baseline = Uncaptured(clock, "c", 1.0), SimulatedEngine(clock, "b", 1.5)
    candidate.facts = dataclasses.replace(candidate.facts, notes=("portable graph",))
    plan = TimingPlan(0.0, 0.0, 8, 0.0)
    profile = BatchProfile(1, 1, 1)
    found = compare_engines(candidate, baseline, names=NAMES, profile=profile, image_size=(4, 4), gpu_plan=plan, clock=clock)
    assert found.notes == ("INT8: no CUDA graph could be captured",)


def test_a_machine_that_slows_down_is_not_read_as_a_difference() -> None:
    def slowing(batch: int, now: float) -> float:
        return 1.0 + now / 2

    assert compared(slowing, slowing, gpu_plan=TimingPlan(0.0, 1.0, 30, 2.0)).answer == NO


def test_the_first_call_of_a_block_is_left_out() -> None:
    class ColdFirst(SimulatedEngine):
        def compute_times_ms(self, images: Any, count: int) -> Any:
            times = super().compute_times_ms(images, count)
            times[0] *= 3
            return times

    clock = Clock()
    candidate, baseline = ColdFirst(clock, "c", 1.0), SimulatedEngine(clock, "b", 1.5)
    plan = TimingPlan(0.0, 0.0, 8, 0.0, fewest_calls=3, most_calls=3)
    found = compare_engines(
        candidate, baseline, names=NAMES, profile=BatchProfile(1, 1, 1), image_size=(4, 4), gpu_plan=plan, clock=clock
    )
    assert found.batches[0].speedup == pytest.approx(1.5)


def test_gpu_time_decides_where_host_latency_would_not() -> None:
    found = compared(0.5, 0.55, overhead_ms=0.6)
    (batch,) = found.batches
    assert found.accepted
    assert (batch.candidate_host_ms, batch.baseline_host_ms) == (pytest.approx(1.1), pytest.approx(1.15))
    assert not compared(0.5, 0.55, overhead_ms=0.6, on_gpu=False).accepted


def test_without_a_gpu_the_hosts_clock_decides_at_the_opt_batch() -> None:
    found = compared(4.0, 6.0, BatchProfile(1, 2, 8), on_gpu=False)
    assert (found.accepted, found.measure, [batch.batch for batch in found.batches]) == (True, "host latency", [2])
    assert found.batches[0].candidate_host_ms is None
    assert found.device is None


def test_the_opt_batch_decides_and_another_that_would_not_is_named() -> None:
    def relative(batch: int, now: float) -> float:
        return 1.0 if batch < 32 else 2.0

    found = compared(relative, 1.5, BatchProfile(1, 4, 32))
    assert [batch.batch for batch in found.batches] == [4, 1, 32]
    assert found.accepted
    (note,) = found.notes
    assert note.startswith("batch 32 by itself would answer otherwise (no): INT8 2.00 ms, FP16 1.50 ms at batch 32, 0.75 times")


def test_the_gpus_state_is_recorded_round_the_timing_and_a_change_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"sm_clock_mhz": 1980, "memory_clock_mhz": 3201, "throttle_reasons": []}
    states = iter([state, {**state, "sm_clock_mhz": 1500, "throttle_reasons": ["sw_thermal_slowdown"]}])
    monkeypatch.setattr(module, "device_state", lambda: next(states))
    found = compared(4.0, 6.0)
    assert found.device is not None
    assert [found.device[when]["sm_clock_mhz"] for when in ("before", "after")] == [1980, 1500]
    assert found.device["end"] is found.device["after"]
    assert len(found.notes) == 2
    assert "1980 to 1500 MHz" in found.notes[0]
    assert "sw_thermal_slowdown" in found.notes[1]


def test_on_a_cpu_there_is_a_pause_wherever_the_engine_changes_and_only_there() -> None:
    clock = Clock()
    plan = TimingPlan(0.0, 0.0, 8, 0.0, fewest_calls=1, most_calls=1, pause_s=0.05)
    paused: list[float] = []

    def sleep(seconds: float) -> None:
        paused.append(seconds)
        clock.ran.append(" ")

    compared(1.0, 1.0, clock=clock, on_gpu=False, cpu_plan=plan, sleep=sleep)
    # eight rounds of four blocks of two calls, b c c b and c b b c in turn
    assert "".join(clock.ran).endswith(" ".join(["bb cccc bb cc bbbb cc"] * 4))
    assert set(paused) == {0.05}


def test_on_a_gpu_nothing_waits() -> None:
    def sleep(seconds: float) -> None:
        raise AssertionError("waited")

    assert compared(4.0, 6.0, sleep=sleep).accepted


def test_on_a_cpu_the_first_call_of_a_block_is_left_out_of_two() -> None:
    class ColdFirst(SimulatedEngine):
        cold = False

        def infer(self, images: Any) -> Any:
            self.cold = not self.cold
            self.ms = 9.0 if self.cold else 1.0
            return super().infer(images)

    clock = Clock()
    candidate, baseline = ColdFirst(clock, "c", 1.0, on_gpu=False), SimulatedEngine(clock, "b", 1.5, on_gpu=False)
    plan = TimingPlan(0.0, 0.0, 8, 0.0, fewest_calls=1, most_calls=1)
    settings = {"profile": BatchProfile(1, 1, 1), "image_size": (4, 4), "clock": clock, "sleep": lambda seconds: None}
    candidate.cold = True  # three calls decide the size of a block: two are left
    found = compare_engines(candidate, baseline, names=NAMES, cpu_plan=plan, **settings)  # type: ignore[arg-type]
    assert found.batches[0].speedup == pytest.approx(1.5)


def ranked(*times_ms: float, **settings: Any) -> Any:
    clock, rng = Clock(), np.random.default_rng(0)
    engines = [(f"e{i}", SimulatedEngine(clock, f"e{i}", ms, on_gpu=False, rng=rng)) for i, ms in enumerate(times_ms)]
    common = {"profile": BatchProfile(1, 1, 1), "image_size": (4, 4), "clock": clock, "sleep": lambda seconds: None}
    return rank_engines(engines, **common, **settings)


def test_the_fastest_of_several_is_first_and_the_others_follow_by_time() -> None:
    found = ranked(4.0, 6.0, 2.0, 3.0)
    assert found.order == ("e2", "e3", "e0", "e1")
    assert [found.relative[name] for name in found.order] == pytest.approx([1.0, 1.5, 2.0, 3.0])
    assert [found.median_ms[name] for name in found.order] == pytest.approx([2.0, 3.0, 4.0, 6.0])
    assert [(one.candidate, one.baseline) for one in found.comparisons] == [("e1", "e0"), ("e2", "e0"), ("e3", "e2")]
    assert "e2 is faster: e2 2.00 ms, e0 4.00 ms" in found.reason


def test_without_a_clear_difference_the_earlier_engine_stays() -> None:
    assert ranked(4.0, 3.97).order[0] == "e0"
    assert ranked(4.0, 3.97, margin=1.0).order[0] == "e1"


def test_one_engine_alone_is_first_and_nothing_is_timed() -> None:
    found = ranked(4.0)
    assert (found.order, found.comparisons, found.reason) == (("e0",), (), "e0 is the only engine")


def test_a_candidate_that_is_not_right_is_refused_without_timing() -> None:
    found = refused(NAMES, "INT8 is outside its gate")
    assert (found.accepted, found.within_gate, found.batches) == (False, False, ())
    assert found.reason == "FP16 stays: INT8 is outside its gate"
    assert json.loads(json.dumps(found.to_json()))["batches"] == {}


@pytest.mark.parametrize("bad", [{"rounds": 7}, {"seconds": -1.0}, {"pause_s": -1.0}, {"budget_s": math.nan}, {"fewest_calls": 0}])
def test_a_plan_that_cannot_be_meant_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        TimingPlan(**{"warmup_s": 0.0, "seconds": 0.0, "rounds": 8, "budget_s": 1.0, **bad})


def answers(ratio: float, noise: float, margin: float, on_gpu: bool, trials: int = 60) -> list[str]:
    """Of comparisons of engines whose true ratio is known; the noise is that of each call, with 3 % outliers, and a clock that drifts."""

    def drifting(mean: float) -> Any:
        return lambda batch, now: mean * (1 + 0.1 * math.sin(now))

    rng = np.random.default_rng(7)
    return [
        compared(drifting(4.0), drifting(4.0 * ratio), noise=noise, outliers=0.03, rng=rng, margin=margin, on_gpu=on_gpu).answer
        for _ in range(trials)
    ]


OFTEN = [(1.02, 0.02, False), (1.02, 0.08, True), (1.05, 0.08, False)]
SELDOM = [
    (margin, noise, on_gpu)
    for margin in (1.02, 1.05)
    for noise in (0.02, 0.05, 0.08)
    for on_gpu in (True, False)
    if (margin, noise, on_gpu) not in OFTEN
]


@pytest.mark.parametrize(("margin", "noise", "on_gpu"), [*OFTEN, *(pytest.param(*case, marks=pytest.mark.slow) for case in SELDOM)])
def test_wrong_answers_are_rare(margin: float, noise: float, on_gpu: bool) -> None:
    """False accepts at 0.03 below the margin and false rejects at 0.05 above it: at most one in sixty, each."""
    below = answers(margin - 0.03, noise, margin, on_gpu)
    above = answers(margin + 0.05, noise, margin, on_gpu)
    assert below.count(YES) <= 1
    assert len(above) - above.count(YES) <= 1
