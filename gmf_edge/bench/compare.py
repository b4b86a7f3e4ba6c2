"""Is the faster engine right, and worth it on this machine? Two engines timed in turn, A B A B, and a decision with its margin.

In turn, because clocks, caches and other programs drift: each round gives one ratio of two neighbours in time, and the median of
the ratios decides.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from gmf_edge.errors import SpecError

# INT8 has to be this many times as fast as what it replaces: less is not worth any loss of accuracy
DEFAULT_MARGIN = 1.05
DEFAULT_ROUNDS = 30
WARMUP_ROUNDS = 3


@dataclass(frozen=True)
class Comparison:
    """Whether the candidate replaces the baseline, and the figures.

    Attributes:
        accepted: whether it does.
        reason: one sentence with the figures.
        candidate, baseline: what the two are called.
        candidate_ms, baseline_ms: medians of one call, in milliseconds.
        speedup: median over the rounds of baseline's time over candidate's.
        speedup_quartiles: first and third quartile of the same.
        margin: speedup that was asked for.
        rounds: how many were timed.
        within_gate: whether the candidate's accuracy is within its gate.
    """

    accepted: bool
    reason: str
    candidate: str
    baseline: str
    candidate_ms: float
    baseline_ms: float
    speedup: float
    speedup_quartiles: tuple[float, float]
    margin: float
    rounds: int
    within_gate: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a report."""
        return {**asdict(self), "speedup_quartiles": list(self.speedup_quartiles)}


def compare(
    run_candidate: Callable[[], object],
    run_baseline: Callable[[], object],
    *,
    candidate: str = "INT8",
    baseline: str = "FP16",
    within_gate: bool = True,
    margin: float = DEFAULT_MARGIN,
    rounds: int = DEFAULT_ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Time two engines in turn and decide.

    Args:
        run_candidate, run_baseline: one synchronous inference each, on the same batch: lambda: engine.infer(images).
        candidate, baseline: what they are called in the reason.
        within_gate: whether the candidate passed its gate; where it did not, speed cannot make up for it.
        margin: the least speedup that pays.
        rounds: each times both once; WARMUP_ROUNDS go before, untimed.
        clock: seconds.

    Raises:
        SpecError: fewer than three rounds, or a margin that is not positive.
    """
    if rounds < 3 or not margin > 0:
        raise SpecError(f"{rounds} rounds with margin {margin}", "use at least three rounds and a positive margin, such as 1.05")
    times: dict[str, list[float]] = {"candidate": [], "baseline": []}
    for turn in range(WARMUP_ROUNDS + rounds):
        for name, run in (("baseline", run_baseline), ("candidate", run_candidate)):
            start = clock()
            run()
            elapsed = clock() - start
            if turn >= WARMUP_ROUNDS:
                times[name].append(elapsed)
    # a clock too coarse for the work would divide by zero
    ratios = [b / max(c, 1e-9) for b, c in zip(times["baseline"], times["candidate"], strict=True)]
    low, speedup, high = statistics.quantiles(ratios, n=4)
    candidate_ms, baseline_ms = (1e3 * statistics.median(times[name]) for name in ("candidate", "baseline"))
    fast = speedup >= margin
    figures = f"{candidate} {candidate_ms:.2f} ms, {baseline} {baseline_ms:.2f} ms, {speedup:.2f} times (margin {margin:g})"
    if not within_gate:
        reason = f"{candidate} is outside its accuracy gate, {baseline} is kept ({figures})"
    elif not fast:
        reason = f"{candidate} does not pay on this machine, {baseline} is kept: {figures}"
    else:
        reason = f"{candidate} pays: {figures}"
    return Comparison(
        accepted=fast and within_gate,
        reason=reason,
        candidate=candidate,
        baseline=baseline,
        candidate_ms=candidate_ms,
        baseline_ms=baseline_ms,
        speedup=speedup,
        speedup_quartiles=(low, high),
        margin=margin,
        rounds=rounds,
        within_gate=within_gate,
    )
