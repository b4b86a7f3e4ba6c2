"""Is the faster engine right, and worth it on this machine? The one place where this is decided.

A round is four blocks of calls in the order A B B A, so that what drifts evenly (clocks, temperature, other programs) cancels, and
gives one ratio. Of a block the first call is left out: it meets the other engine's weights in the cache. On a CPU there is a pause
wherever the engine changes: threads of the one spin for tens of milliseconds after its last inference, on cores that the other
needs. The median of the ratios, with its confidence interval (see median), is held against the margin:

yes                   the interval lies at or above the margin
no                    it lies below
no clear difference   the margin is inside, and the time was over: the baseline stays

On a GPU the times are GPU compute times (Engine.compute_times_ms), else the host's. Rounds are added until the answer is clear or
the time is over. Among several engines (rank_engines) each in turn is held against the fastest so far.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gmf_edge.bench.calls import call_times_ms, seeded_images
from gmf_edge.bench.device import device_state, state_notes
from gmf_edge.bench.median import median_interval
from gmf_edge.engines.protocol import Engine, FloatArray, Progress, silent
from gmf_edge.errors import SpecError
from gmf_edge.spec import BatchProfile

YES, NO, UNCLEAR = "yes", "no", "no clear difference"
# less than this is not worth any loss of accuracy
DEFAULT_MARGIN = 1.05
# between engines that are equally right: less is within the differences from one run to the next
RANKING_MARGIN = 1.02
# of each bound by itself
CONFIDENCE = 0.99
# inferences whose host latency is reported beside GPU times
HOST_CALLS = 20


@dataclass(frozen=True)
class TimingPlan:
    """How long and in which pieces two engines are timed.

    Attributes:
        warmup_s: of each engine before anything is timed: a GPU leaves its idle clocks over hundreds of milliseconds.
        seconds, rounds: both are reached before the first answer.
        budget_s: no new round after it.
        block_ms: a block takes about this long, and has at least fewest_calls and at most most_calls calls.
        fewest_calls, most_calls: see block_ms.
        pause_s: of rest, where the engine changes.
    """

    warmup_s: float
    seconds: float
    rounds: int
    budget_s: float
    block_ms: float = 20.0
    fewest_calls: int = 1
    most_calls: int = 20
    pause_s: float = 0.0

    def __post_init__(self) -> None:
        if not (self.rounds >= 8 and self.fewest_calls >= 1 and self.most_calls >= self.fewest_calls):
            raise SpecError(
                f"{self.rounds} rounds of {self.fewest_calls}..{self.most_calls} calls", "use at least 8 rounds of 1 call"
            )
        if not all(value >= 0 for value in (self.warmup_s, self.seconds, self.budget_s, self.block_ms, self.pause_s)):
            raise SpecError("times to measure for are below 0 or no numbers", "give seconds of at least 0")


# trtexec's three seconds, and enough rounds to tell 2 % at the noise of a GPU with free clocks
GPU_PLAN = TimingPlan(warmup_s=0.5, seconds=2.0, rounds=100, budget_s=30.0, fewest_calls=3)
# at the batch sizes that do not decide
GPU_GLANCE = TimingPlan(warmup_s=0.5, seconds=2.0, rounds=30, budget_s=0.0, fewest_calls=3)
# ONNX Runtime's threads spin for some 30 ms after an inference
CPU_PLAN = TimingPlan(warmup_s=0.1, seconds=0.2, rounds=15, budget_s=10.0, block_ms=5.0, pause_s=0.05)
RANKING_PLAN = TimingPlan(warmup_s=0.1, seconds=0.2, rounds=8, budget_s=5.0, block_ms=5.0, pause_s=0.05)


@dataclass(frozen=True)
class BatchComparison:
    """Two engines at one batch size.

    Attributes:
        batch: images an inference.
        answer: YES, NO or UNCLEAR.
        candidate_ms, baseline_ms: median of the blocks.
        speedup: median over the rounds of the baseline's time over the candidate's.
        speedup_low, speedup_high: bounds of the true median, each with CONFIDENCE; None where the rounds were too few for a bound.
        rounds: how many were timed.
        calls: inferences a block.
        candidate_host_ms, baseline_host_ms: median host latency, transfers included; None where that is the measure itself.
    """

    batch: int
    answer: str
    candidate_ms: float
    baseline_ms: float
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    rounds: int
    calls: int
    candidate_host_ms: float | None = None
    baseline_host_ms: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Whether the candidate replaces the baseline, and the figures.

    Attributes:
        accepted: whether it does: it is within its gate, and the answer is YES.
        answer: at the batch size that decides; NO where it was not timed because it is outside its gate.
        reason: one sentence with the figures.
        candidate, baseline: what the two are called.
        within_gate: whether the candidate's accuracy is within its gate.
        margin: speedup that was asked for.
        measure: what was timed.
        batches: the batch size that decides first, then the others.
        device: {"before", "after"} of bench.device.device_state round the timing that decides, and the "end" of all; None on a CPU.
        notes: what makes the figures doubtful, what the engines found while they ran (such as a CUDA graph that could not be
            captured), and batch sizes that would decide otherwise.
    """

    accepted: bool
    answer: str
    reason: str
    candidate: str
    baseline: str
    within_gate: bool
    margin: float
    measure: str | None = None
    batches: tuple[BatchComparison, ...] = ()
    device: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a report."""
        batches = {str(found.batch): asdict(found) for found in self.batches}
        return {**asdict(self), "batches": batches, "notes": list(self.notes), "confidence": CONFIDENCE}


def compare_engines(
    candidate: Engine,
    baseline: Engine,
    *,
    names: tuple[str, str],
    profile: BatchProfile,
    image_size: tuple[int, int],
    margin: float = DEFAULT_MARGIN,
    gpu_plan: TimingPlan = GPU_PLAN,
    gpu_glance: TimingPlan = GPU_GLANCE,
    cpu_plan: TimingPlan = CPU_PLAN,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
    progress: Progress = silent,
) -> Comparison:
    """Time two engines that are both right, and decide.

    The opt batch size decides. On a GPU min and max are timed too, more briefly, and the notes say where they would decide otherwise.

    Args:
        candidate, baseline: opened; the candidate within its gate (see refused for one that is not).
        names: what they are called in the reason.
        profile: batch sizes that both take.
        image_size: (H, W) in pixels.
        margin: the least speedup that is worth it.
        gpu_plan, gpu_glance, cpu_plan: how long: at the batch size that decides, at the others, and where there is no GPU.
        clock: seconds, of the host.
        sleep: for a number of seconds.
        progress: told what is going on.

    Raises:
        SpecError: a margin that is not positive.
        EngineError: an engine cannot run.
    """
    if not margin > 0:
        raise SpecError(f"a margin of {margin}", "use a positive one, such as 1.05")
    notes_before = [engine.facts.notes for engine in (candidate, baseline)]
    timer = _Timer(candidate, baseline, profile, image_size, clock, sleep)
    progress(None, f"timing {names[0]} against {names[1]} at batch {profile.opt}, {timer.measure}")
    timer.warm_up(profile.opt, (gpu_plan if timer.on_gpu else cpu_plan).warmup_s)
    before = device_state() if timer.on_gpu else None
    batches = [timer.compare(profile.opt, margin, gpu_plan if timer.on_gpu else cpu_plan, progress)]
    after = device_state() if timer.on_gpu else None
    for batch in profile.sizes if timer.on_gpu else ():
        if batch != profile.opt:
            progress(None, f"timing {names[0]} against {names[1]} at batch {batch}")
            timer.warm_up(batch, gpu_glance.warmup_s)
            batches.append(timer.compare(batch, margin, gpu_glance, progress))
    decisive, *others = batches
    end = device_state() if others else after
    found = [
        f"{name}: {note}"
        for name, engine, earlier in zip(names, (candidate, baseline), notes_before, strict=True)
        for note in engine.facts.notes
        if note not in earlier
    ]
    notes = [
        *dict.fromkeys((*state_notes(before, after), *state_notes(after, end))),
        *found,
        *(_otherwise(other, names, margin) for other in others if other.answer != decisive.answer),
    ]
    return Comparison(
        accepted=decisive.answer == YES,
        answer=decisive.answer,
        reason=_reason(decisive, names, margin, timer.measure),
        candidate=names[0],
        baseline=names[1],
        within_gate=True,
        margin=margin,
        measure=timer.measure,
        batches=tuple(batches),
        device={"before": before, "after": after, "end": end} if timer.on_gpu else None,
        notes=tuple(notes),
    )


def refused(names: tuple[str, str], why: str, margin: float = DEFAULT_MARGIN, within_gate: bool = False) -> Comparison:
    """The decision about a candidate that is not right, or could not be tried at all: no speed makes up for that."""
    return Comparison(
        accepted=False,
        answer=NO,
        reason=f"{names[1]} stays: {why}",
        candidate=names[0],
        baseline=names[1],
        within_gate=within_gate,
        margin=margin,
    )


@dataclass(frozen=True)
class Ranking:
    """Several engines that are right, the one to deliver first.

    Attributes:
        order: their names; behind the first by time.
        relative: name -> its time over that of the first, at the batch size that decides.
        median_ms: name -> median of its blocks there, in the last comparison that it was part of; empty where nothing was timed.
        comparisons: in the order in which they were made.
        reason: one sentence with the figures; that there was one engine alone, where there was.
    """

    order: tuple[str, ...]
    relative: Mapping[str, float]
    median_ms: Mapping[str, float]
    comparisons: tuple[Comparison, ...]
    reason: str


def rank_engines(engines: Sequence[tuple[str, Engine]], *, margin: float = RANKING_MARGIN, **settings: Any) -> Ranking:
    """Time engines that are all within their gate, each against the fastest so far; without a clear difference the earlier stays.

    Args:
        engines: (name, opened engine), at least one, the one that is preferred where speed does not decide first.
        margin: by which one has to be faster than one before it.
        settings: of compare_engines: profile, image_size, and those that have defaults; cpu_plan is RANKING_PLAN by itself.

    Raises:
        SpecError, EngineError: see compare_engines.
    """
    (best, best_engine), *others = engines
    times = {best: 1.0}
    median_ms: dict[str, float] = {}
    comparisons = []
    for name, engine in others:
        found = compare_engines(engine, best_engine, names=(name, best), margin=margin, **{"cpu_plan": RANKING_PLAN, **settings})
        comparisons.append(found)
        decisive = found.batches[0]
        times[name] = times[best] / decisive.speedup
        median_ms |= {best: decisive.baseline_ms, name: decisive.candidate_ms}
        if found.accepted:
            best, best_engine = name, engine
    order = (best, *sorted((name for name in times if name != best), key=times.__getitem__))
    reason = "; ".join(found.reason for found in comparisons) or f"{best} is the only engine"
    relative = {name: times[name] / times[best] for name in order}
    return Ranking(order, relative, median_ms, tuple(comparisons), reason)


class _Timer:
    """Times of two engines in turn, by the GPU's clock where both have one, else by the host's."""

    def __init__(
        self,
        candidate: Engine,
        baseline: Engine,
        profile: BatchProfile,
        image_size: tuple[int, int],
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self.candidate, self.baseline, self.image_size, self.clock, self.sleep = candidate, baseline, image_size, clock, sleep
        self.last_ran: Engine | None = None
        probe = seeded_images(profile.opt, image_size)
        self.on_gpu = all(engine.compute_times_ms(probe, 1) is not None for engine in (baseline, candidate))
        self.measure = "GPU compute time" if self.on_gpu else "host latency"

    def _host_ms(self, engine: Engine, images: FloatArray) -> float:
        return call_times_ms(engine, images, 1, on_gpu=False, clock=self.clock)[0]

    def _times_ms(self, engine: Engine, images: FloatArray, calls: int) -> list[float]:
        return call_times_ms(engine, images, calls, on_gpu=self.on_gpu, clock=self.clock)

    def _block_ms(self, engine: Engine, images: FloatArray, calls: int, pause_s: float) -> float:
        if not self.on_gpu and engine is not self.last_ran:
            self.sleep(pause_s)
        self.last_ran = engine
        times = self._times_ms(engine, images, calls)
        return statistics.median(times[1:] if len(times) > (2 if self.on_gpu else 1) else times)

    def warm_up(self, batch: int, seconds: float) -> None:
        """Both engines, untimed, for `seconds` each and at least once."""
        images = seeded_images(batch, self.image_size)
        for engine in (self.candidate, self.baseline):
            end = self.clock() + seconds
            while True:
                self._times_ms(engine, images, 2)
                if self.clock() >= end:
                    break

    def compare(self, batch: int, margin: float, plan: TimingPlan, progress: Progress) -> BatchComparison:
        """Rounds at one batch size until the answer is clear or the plan's time is over."""
        images = seeded_images(batch, self.image_size)
        calls = self._calls_a_block(images, plan)
        candidate_ms: list[float] = []
        baseline_ms: list[float] = []
        ratios: list[float] = []
        start = self.clock()
        wanted, seconds = plan.rounds, plan.seconds
        while True:
            while len(ratios) < wanted or self.clock() - start < seconds:
                if len(ratios) >= plan.rounds and self.clock() - start >= plan.budget_s:
                    break
                order = (self.baseline, baseline_ms), (self.candidate, candidate_ms)
                (first, first_ms), (second, second_ms) = order if len(ratios) % 2 == 0 else order[::-1]
                first_ms.append(self._block_ms(first, images, calls, plan.pause_s))
                second_ms += [self._block_ms(second, images, calls, plan.pause_s) for _ in range(2)]
                first_ms.append(self._block_ms(first, images, calls, plan.pause_s))
                # a clock too coarse for the work would divide by zero
                ratios.append(sum(baseline_ms[-2:]) / max(sum(candidate_ms[-2:]), 1e-9))
                # both are wanted, or the whole budget
                done = min(len(ratios) / wanted, (self.clock() - start) / seconds if seconds > 0 else 1.0)
                done = max(done, (self.clock() - start) / plan.budget_s if plan.budget_s > 0 else 0.0)
                progress(min(done, 1.0), f"timing at batch {batch}, round {len(ratios)}")
            interval = median_interval(ratios, CONFIDENCE)
            answer = YES if interval.low >= margin else NO if interval.high < margin else UNCLEAR
            if answer != UNCLEAR or self.clock() - start >= plan.budget_s:
                break
            wanted, seconds = 2 * len(ratios), 0.0
        host = self._host_latencies(images) if self.on_gpu else (None, None)
        return BatchComparison(
            batch=batch,
            answer=answer,
            candidate_ms=statistics.median(candidate_ms),
            baseline_ms=statistics.median(baseline_ms),
            speedup=interval.median,
            speedup_low=interval.low if math.isfinite(interval.low) else None,
            speedup_high=interval.high if math.isfinite(interval.high) else None,
            rounds=len(ratios),
            calls=calls,
            candidate_host_ms=host[0],
            baseline_host_ms=host[1],
        )

    def _calls_a_block(self, images: FloatArray, plan: TimingPlan) -> int:
        fastest_ms = min(self._block_ms(engine, images, 3, plan.pause_s) for engine in (self.candidate, self.baseline))
        calls = min(max(math.ceil(plan.block_ms / max(fastest_ms, 1e-6)), plan.fewest_calls), plan.most_calls)
        # on a CPU the call that is left out comes on top
        return calls if self.on_gpu else calls + 1

    def _host_latencies(self, images: FloatArray) -> tuple[float, float]:
        times = [(self._host_ms(self.candidate, images), self._host_ms(self.baseline, images)) for _ in range(HOST_CALLS)]
        return statistics.median(first for first, _ in times), statistics.median(second for _, second in times)


def _figures(found: BatchComparison, names: tuple[str, str], margin: float) -> str:
    low, high = (math.nan if bound is None else bound for bound in (found.speedup_low, found.speedup_high))
    return (
        f"{names[0]} {found.candidate_ms:.2f} ms, {names[1]} {found.baseline_ms:.2f} ms at batch {found.batch}, "
        f"{found.speedup:.2f} times ({low:.2f} to {high:.2f}, margin {margin:g})"
    )


def _reason(found: BatchComparison, names: tuple[str, str], margin: float, measure: str) -> str:
    words = {
        YES: f"{names[0]} is faster",
        NO: f"{names[0]} is not worth it on this machine, {names[1]} stays",
        UNCLEAR: f"no clear difference on this machine, {names[1]} stays",
    }
    return f"{words[found.answer]}: {_figures(found, names, margin)}, by {measure}"


def _otherwise(found: BatchComparison, names: tuple[str, str], margin: float) -> str:
    return f"batch {found.batch} by itself would answer otherwise ({found.answer}): {_figures(found, names, margin)}"
