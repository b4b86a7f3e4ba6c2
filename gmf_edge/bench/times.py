"""Statistics of times, by trtexec's conventions, and how sure their median is.

Of n sorted times, percentile p is the one at index max(n - 1 - int((1 - p / 100) * n), 0), in single precision; the median averages the
middle two. Source: sampleReporting.cpp of NVIDIA/TensorRT, findPercentile and findMedian, alike from 8.6 to 11.

Times that follow each other are not independent (clocks, temperature, other programs), so their interval is taken of the medians of
BLOCKS stretches of the run: what changes slowly widens it, single slow calls do not. See median.py for the interval itself.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gmf_edge.bench.median import median_interval

PERCENTILES = (90.0, 95.0, 99.0)
BLOCKS = 20
# both bounds of the interval together hold the median with 95 %
BOUND_CONFIDENCE = 0.975
# a median that is known this well, as a share of it, is steady: another run on this machine finds about the same
STEADY_SHARE = 0.025


@dataclass(frozen=True)
class Times:
    """Statistics of times in milliseconds.

    Attributes:
        mean_ms, median_ms, min_ms, max_ms: of all.
        percentiles_ms: percentile -> milliseconds.
        deviation_ms: standard deviation.
        variation: standard deviation over mean.
        median_low_ms, median_high_ms: the 95 % interval of the median; None where the times are too few for one.
    """

    mean_ms: float
    median_ms: float
    min_ms: float
    max_ms: float
    percentiles_ms: dict[str, float]
    deviation_ms: float
    variation: float
    median_low_ms: float | None
    median_high_ms: float | None

    @classmethod
    def of(cls, times_ms: Sequence[float], percentiles: Sequence[float] = PERCENTILES) -> Times:
        """Of at least one time, in the order in which they were measured."""
        ordered = sorted(times_ms)
        mean, deviation = float(np.mean(ordered)), float(np.std(ordered))
        count = min(BLOCKS, len(times_ms))
        interval = median_interval([float(np.median(block)) for block in np.array_split(times_ms, count)], BOUND_CONFIDENCE)
        return cls(
            mean_ms=mean,
            median_ms=float(np.median(ordered)),
            min_ms=ordered[0],
            max_ms=ordered[-1],
            percentiles_ms={f"{p:g}": percentile_of(ordered, p) for p in percentiles},
            deviation_ms=deviation,
            # transfers that did not take place took no time
            variation=deviation / mean if mean > 0 else 0.0,
            median_low_ms=interval.low if math.isfinite(interval.low) else None,
            median_high_ms=interval.high if math.isfinite(interval.high) else None,
        )

    @property
    def uncertainty(self) -> float | None:
        """The interval's farther bound from the median, as a share of the median; None where there is no interval."""
        if self.median_low_ms is None or self.median_high_ms is None or not self.median_ms > 0:
            return None
        return max(self.median_high_ms - self.median_ms, self.median_ms - self.median_low_ms) / self.median_ms

    @property
    def steady(self) -> bool:
        """Whether the median is known to STEADY_SHARE."""
        return self.uncertainty is not None and self.uncertainty <= STEADY_SHARE

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "uncertainty": self.uncertainty}


def percentile_of(ordered_ms: Sequence[float], percentile: float) -> float:
    """trtexec's percentile of ascending times."""
    count = len(ordered_ms)
    # in single precision: in double precision, one time in many is another than trtexec's (1 - 0.9 is a little below 0.1)
    one, share = np.float32(1), np.float32(percentile) / np.float32(100)
    return ordered_ms[max(count - 1 - int((one - share) * np.float32(count)), 0)]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile, interpolated; of at least one value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
