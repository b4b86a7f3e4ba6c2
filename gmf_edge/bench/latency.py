"""Latency of an opened engine, by trtexec's conventions.

Warm-up, then inferences until both a duration and a number of iterations are reached. Of n sorted times, percentile p is the one at
index max(n - 1 - int((1 - p / 100) * n), 0), in single precision; the median averages the middle two. Source: sampleReporting.cpp of
NVIDIA/TensorRT, findPercentile and findMedian, alike from 8.6 to 11.

host latency       from images in host memory to logits in host memory, one inference at a time, the calling Python included;
                   throughput is images over its wall time (trtexec keeps two inferences in flight, which is more)
GPU compute time   Engine.compute_times_ms, where there is a GPU: what trtexec calls so
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gmf_edge.bench.device import device_state, state_notes
from gmf_edge.engines.protocol import Engine, FloatArray
from gmf_edge.errors import SpecError

PERCENTILES = (90.0, 95.0, 99.0)
# above it the machine was busy or changing its clocks, and the figure should not be quoted
STEADY_VARIATION = 0.025
# GPU times asked for at once: their events are all there at the same time
COMPUTE_CALLS = 10


@dataclass(frozen=True)
class Times:
    """Statistics of times in milliseconds.

    Attributes:
        mean_ms, median_ms, min_ms, max_ms: of all.
        percentiles_ms: percentile -> milliseconds.
        variation: standard deviation over mean.
    """

    mean_ms: float
    median_ms: float
    min_ms: float
    max_ms: float
    percentiles_ms: dict[str, float]
    variation: float

    @classmethod
    def of(cls, times_ms: Sequence[float], percentiles: Sequence[float]) -> Times:
        """Of at least one time."""
        ordered = sorted(times_ms)
        mean = float(np.mean(ordered))
        return cls(
            mean_ms=mean,
            median_ms=float(np.median(ordered)),
            min_ms=ordered[0],
            max_ms=ordered[-1],
            percentiles_ms={f"{p:g}": percentile_of(ordered, p) for p in percentiles},
            variation=float(np.std(ordered)) / mean,
        )


@dataclass(frozen=True)
class Latency:
    """Milliseconds a batch.

    Attributes:
        batch: images an inference.
        iterations: timed inferences.
        host: host latency.
        gpu_compute: GPU compute time; None on a CPU.
        throughput: images a second of wall time, one inference at a time.
        warmup_ms, duration_s: as asked.
        device: {"before", "after"} of bench.device.device_state round the measurement; None on a CPU.
        notes: what makes the figures doubtful.
    """

    batch: int
    iterations: int
    host: Times
    gpu_compute: Times | None
    throughput: float
    warmup_ms: float
    duration_s: float
    device: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values: the host latency's beside the others, and whether the run was steady, by the GPU's times where it has them."""
        values = asdict(self)
        return {
            **values.pop("host"),
            **values,
            "notes": list(self.notes),
            "steady": (self.gpu_compute or self.host).variation <= STEADY_VARIATION,
            "mode": "host latency, one inference at a time, transfers included",
        }


def percentile_of(ordered_ms: Sequence[float], percentile: float) -> float:
    """trtexec's percentile of ascending times."""
    count = len(ordered_ms)
    # in single precision: in double precision, one time in many is another than trtexec's (1 - 0.9 is a little below 0.1)
    one, share = np.float32(1), np.float32(percentile) / np.float32(100)
    return ordered_ms[max(count - 1 - int((one - share) * np.float32(count)), 0)]


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
    require_settings(warmup_ms, duration_s, iterations, percentiles)
    images = np.random.default_rng(0).standard_normal((batch, 3, *image_size)).astype(np.float32)
    end = time.perf_counter() + warmup_ms / 1000
    while True:
        engine.infer(images)
        if time.perf_counter() >= end:
            break
    on_gpu = engine.compute_times_ms(images, 1) is not None
    before = device_state() if on_gpu else None
    compute = _compute_times(engine, images, duration_s, iterations) if on_gpu else []
    times_ms: list[float] = []
    start = now = time.perf_counter()
    while now - start < duration_s or len(times_ms) < iterations:
        earlier = now
        engine.infer(images)
        now = time.perf_counter()
        times_ms.append((now - earlier) * 1000)
    after = device_state() if on_gpu else None
    return Latency(
        batch=batch,
        iterations=len(times_ms),
        host=Times.of(times_ms, percentiles),
        gpu_compute=Times.of(compute, percentiles) if on_gpu else None,
        throughput=batch * len(times_ms) / (now - start),
        warmup_ms=warmup_ms,
        duration_s=duration_s,
        device={"before": before, "after": after} if on_gpu else None,
        notes=state_notes(before, after),
    )


def require_settings(warmup_ms: float, duration_s: float, iterations: int, percentiles: Sequence[float]) -> None:
    """Refuse settings that no measurement can have.

    Raises:
        SpecError: negative, endless or missing ones.
    """
    # written so that NaN is refused too
    times_fit = 0 <= warmup_ms < math.inf and 0 <= duration_s < math.inf
    if not times_fit or iterations < 1 or not all(0 < percentile <= 100 for percentile in percentiles):
        raise SpecError(
            f"benchmark settings are out of range: {warmup_ms:g} ms, {duration_s:g} s, {iterations} iterations, percentiles "
            f"{', '.join(f'{percentile:g}' for percentile in percentiles)}",
            "give finite times of at least 0, at least one iteration, and percentiles above 0 and at most 100",
        )


def _compute_times(engine: Engine, images: FloatArray, duration_s: float, iterations: int) -> list[float]:
    """GPU compute times in milliseconds until both the duration and the iterations are reached."""
    times_ms: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < duration_s or len(times_ms) < iterations:
        found = engine.compute_times_ms(images, COMPUTE_CALLS)
        assert found is not None, "an engine has GPU times or has none"
        times_ms += found.tolist()
    return times_ms
