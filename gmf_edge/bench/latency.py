"""Latency of an opened engine, by trtexec's conventions.

Warm-up, then inferences until both a duration and a number of iterations are reached. Of n sorted times, percentile p is the one at
index max(n - 1 - int((1 - p / 100) * n), 0); the median averages the middle two; throughput is images over wall time. Host latency:
from images in host memory to logits in host memory.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gmf_edge.engines.protocol import Engine
from gmf_edge.errors import SpecError

PERCENTILES = (90.0, 95.0, 99.0)
# above it the machine was busy or changing its clocks, and the figure should not be quoted
STEADY_VARIATION = 0.025


@dataclass(frozen=True)
class Latency:
    """Milliseconds a batch.

    Attributes:
        batch: images an inference.
        iterations: timed inferences.
        mean_ms, median_ms, min_ms, max_ms: of the timed inferences.
        percentiles_ms: percentile -> milliseconds.
        throughput: images a second of wall time.
        variation: standard deviation over mean.
        warmup_ms, duration_s: as asked.
    """

    batch: int
    iterations: int
    mean_ms: float
    median_ms: float
    min_ms: float
    max_ms: float
    percentiles_ms: dict[str, float]
    throughput: float
    variation: float
    warmup_ms: float
    duration_s: float

    def to_json(self) -> dict[str, Any]:
        """Plain values, and whether the run was steady."""
        return {**asdict(self), "steady": self.variation <= STEADY_VARIATION, "mode": "host latency, transfers included"}


def percentile_of(ordered_ms: Sequence[float], percentile: float) -> float:
    """trtexec's percentile of ascending times."""
    count = len(ordered_ms)
    return ordered_ms[max(count - 1 - int((1 - percentile / 100) * count), 0)]


def measure_latency(
    engine: Engine,
    batch: int,
    image_size: tuple[int, int],
    *,
    warmup_ms: float = 200.0,
    duration_s: float = 3.0,
    iterations: int = 10,
    percentiles: Sequence[float] = PERCENTILES,
) -> Latency:
    """Time inferences of one batch size.

    Args:
        engine: opened.
        batch: within the engine's profile.
        image_size: (H, W) in pixels.
        warmup_ms: untimed inferences before.
        duration_s, iterations: both are reached.
        percentiles: to report, each above 0 and at most 100.

    Raises:
        SpecError: nonsense settings.
        EngineError: the engine refuses the batch.
    """
    if warmup_ms < 0 or duration_s < 0 or iterations < 1 or not all(0 < p <= 100 for p in percentiles):
        raise SpecError("benchmark settings are out of range", "give times of at least 0, an iteration and percentiles in 0..100")
    images = np.random.default_rng(0).standard_normal((batch, 3, *image_size)).astype(np.float32)
    end = time.perf_counter() + warmup_ms / 1000
    while True:
        engine.infer(images)
        if time.perf_counter() >= end:
            break
    times_ms: list[float] = []
    start = now = time.perf_counter()
    while now - start < duration_s or len(times_ms) < iterations:
        before = now
        engine.infer(images)
        now = time.perf_counter()
        times_ms.append((now - before) * 1000)
    ordered = sorted(times_ms)
    mean = float(np.mean(times_ms))
    return Latency(
        batch=batch,
        iterations=len(times_ms),
        mean_ms=mean,
        median_ms=float(np.median(times_ms)),
        min_ms=ordered[0],
        max_ms=ordered[-1],
        percentiles_ms={f"{p:g}": percentile_of(ordered, p) for p in percentiles},
        throughput=batch * len(times_ms) / (now - start),
        variation=float(np.std(times_ms)) / mean,
        warmup_ms=warmup_ms,
        duration_s=duration_s,
    )
