"""Several engines timed in turn, in one run, so that what the machine does meanwhile meets them all alike.

A round is a block of calls of each engine; rounds start with another engine each time. Before a block the machine is left alone for a
moment, because the threads of the engine before (OpenMP's, ONNX Runtime's) go on spinning for a while; its first call is left out,
because it meets the other engine's weights in the cache. The ratio of two engines is taken round by round, of neighbours in time.

On a GPU, where all engines have them, the times are GPU compute times, else the host's.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gmf_edge.bench.calls import Clock, call_times_ms, warm_up
from gmf_edge.bench.median import median_interval
from gmf_edge.bench.times import BOUND_CONFIDENCE, Times, quartiles
from gmf_edge.engines.protocol import Engine, FloatArray, Progress, silent
from gmf_edge.errors import SpecError


@dataclass(frozen=True)
class TurnPlan:
    """How engines are timed in turn.

    Attributes:
        warmup_s: of each, once, before the first round (and at least two calls: the first may compile).
        seconds: of timed blocks, per engine; reached together with `rounds`.
        rounds: at least.
        block_ms: a block takes about this long, and has at least one timed call and at most `most_calls`.
        quiet_s: nothing runs for so long before each block.
        most_calls: see block_ms.
    """

    warmup_s: float = 0.3
    seconds: float = 3.0
    rounds: int = 12
    block_ms: float = 100.0
    quiet_s: float = 0.1
    most_calls: int = 50

    def __post_init__(self) -> None:
        if not (self.rounds >= 1 and self.most_calls >= 1 and min(self.warmup_s, self.seconds, self.block_ms, self.quiet_s) >= 0):
            raise SpecError("settings of engines in turn are out of range", "give times of at least 0 and at least one round")


@dataclass(frozen=True)
class TurnTimes:
    """One engine's part.

    Attributes:
        times: of the blocks' medians, in the order of the rounds, in milliseconds.
        ratio: median over the rounds of this engine's time over the first engine's: how many times as fast the first one is.
        ratio_low, ratio_high: lower and upper quartile of it.
        ratio_interval_95: of its median; None where the rounds are too few.
        calls: timed calls in all.
    """

    times: Times
    ratio: float
    ratio_low: float
    ratio_high: float
    ratio_interval_95: tuple[float, float] | None
    calls: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        interval = None if self.ratio_interval_95 is None else list(self.ratio_interval_95)
        return {**asdict(self), "times": self.times.to_json(), "ratio_interval_95": interval}


@dataclass(frozen=True)
class InTurn:
    """What time_in_turn found.

    Attributes:
        measure: "GPU compute time" or "host latency".
        rounds: how many.
        engines: name -> its part, the first one's ratio is 1.
    """

    measure: str
    rounds: int
    engines: Mapping[str, TurnTimes]


def time_in_turn(
    engines: Mapping[str, Engine],
    images: FloatArray,
    plan: TurnPlan,
    *,
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
    progress: Progress = silent,
) -> InTurn:
    """Time engines in turn on the same images.

    Args:
        engines: name -> opened engine; ratios are to the first.
        images: float32 [B, 3, H, W].
        plan: how long.
        clock, sleep: of the host.
        progress: told what is going on.

    Raises:
        EngineError: an engine refuses the images.
    """
    names = list(engines)
    for name in names:
        progress(None, f"warming up {name} at batch {len(images)}")
        warm_up(engines[name], images, plan.warmup_s, least=2, clock=clock)
    on_gpu = all(engine.compute_times_ms(images, 1) is not None for engine in engines.values())
    calls = {name: _calls_a_block(engines[name], images, plan, on_gpu, clock) for name in names}
    blocks: dict[str, list[float]] = {name: [] for name in names}
    spent_s = dict.fromkeys(names, 0.0)
    number = 0
    while number < plan.rounds or min(spent_s.values()) < plan.seconds:
        done = number / plan.rounds
        if plan.seconds > 0:
            done = min(done, min(spent_s.values()) / plan.seconds)
        progress(min(done, 1.0), f"{', '.join(names)} in turn at batch {len(images)}")
        first = number % len(names)
        for name in names[first:] + names[:first]:
            sleep(plan.quiet_s)
            began = clock()
            times = call_times_ms(engines[name], images, calls[name] + 1, on_gpu=on_gpu, clock=clock)
            spent_s[name] += clock() - began
            blocks[name].append(statistics.median(times[1:]))
        number += 1
    ours = blocks[names[0]]
    return InTurn(
        "GPU compute time" if on_gpu else "host latency",
        number,
        {name: _part(blocks[name], ours, number * calls[name]) for name in names},
    )


def _part(blocks: list[float], ours: list[float], calls: int) -> TurnTimes:
    # a clock too coarse for the work would divide by zero
    ratios = [other / max(own, 1e-9) for other, own in zip(blocks, ours, strict=True)]
    low, middle, high = quartiles(ratios)
    interval = median_interval(ratios, BOUND_CONFIDENCE)
    bounded = (interval.low, interval.high) if math.isfinite(interval.low) else None
    return TurnTimes(Times.of(blocks), middle, low, high, bounded, calls)


def _calls_a_block(engine: Engine, images: FloatArray, plan: TurnPlan, on_gpu: bool, clock: Clock) -> int:
    usual_ms = statistics.median(call_times_ms(engine, images, 3, on_gpu=on_gpu, clock=clock))
    return min(max(round(plan.block_ms / max(usual_ms, 1e-6)), 1), plan.most_calls)
