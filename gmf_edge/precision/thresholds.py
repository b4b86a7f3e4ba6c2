"""A histogram of magnitudes -> the range that INT8's codes are spread over.

method       range
minmax       the largest magnitude
percentile   the magnitude below which that share of the values lies
mse          the one with the smallest squared error of rounding and clipping together
entropy      the one whose 128 levels lose the least information (Kullback-Leibler divergence)
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gmf_edge.errors import SpecError
from gmf_edge.precision.activations import TensorStatistics

# magnitudes of symmetric INT8: 0..127
LEVELS = 128
LARGEST_CODE = 127
# candidates for the range, as shares of the largest magnitude
MSE_SHARES = np.linspace(0.1, 1.0, 181)
ENTROPY_STEP_BINS = 16


def threshold(found: TensorStatistics, method: str, percentile: float = 99.99) -> float:
    """The range of one tensor by one of the module's methods; 0 for a tensor that is all zero."""
    if not found.largest > 0:
        return 0.0
    if method == "minmax":
        return found.largest
    if method == "percentile":
        return percentile_threshold(found.histogram, found.largest, percentile)
    if method == "mse":
        return mse_threshold(found.histogram, found.largest)
    if method == "entropy":
        return entropy_threshold(found.histogram, found.largest)
    raise SpecError(f"calibration method {method!r} is not known", "use minmax, entropy, percentile or mse")


def percentile_threshold(histogram: NDArray[np.int64], largest: float, percentile: float) -> float:
    """Upper edge of the first bin at which `percentile` per cent of the values are reached."""
    share = np.cumsum(histogram) / histogram.sum()
    # the last share is 1 up to rounding, and 100 % must find it
    bins = min(int(np.searchsorted(share, percentile / 100.0 - 1e-12)) + 1, len(histogram))
    return largest * bins / len(histogram)


def mse_threshold(histogram: NDArray[np.int64], largest: float) -> float:
    """The candidate t that minimises sum of count * (x - t/127 * min(round(127 x / t), 127))^2 over the bins' centres x."""
    centres = (np.arange(len(histogram)) + 0.5) * (largest / len(histogram))  # [bins]
    step = largest * MSE_SHARES[:, None] / LARGEST_CODE  # [candidates, 1]
    error = centres - step * np.minimum(np.rint(centres / step), LARGEST_CODE)
    return float(largest * MSE_SHARES[int(np.argmin((error**2) @ histogram))])


def entropy_threshold(histogram: NDArray[np.int64], largest: float) -> float:
    """The range whose clipped distribution P is nearest to its own version Q of 128 levels: the smallest sum of P log(P / Q).

    Source: S. Migacz, 8-bit Inference with TensorRT, GTC 2017. The zeros' bin takes its neighbour's count: exact zeros cost nothing
    whatever the range, and their number would drown all else.
    """
    counts = histogram.astype(np.float64)
    counts[0] = counts[1]
    total = counts.sum()
    if not total > 0:
        return largest
    best_divergence, best_bins = math.inf, len(counts)
    for bins in range(LEVELS, len(counts) + 1, ENTROPY_STEP_BINS):
        inside = counts[:bins]
        clipped = inside.copy()
        clipped[-1] += counts[bins:].sum()
        starts = np.arange(LEVELS) * bins // LEVELS
        sizes = np.diff(np.append(starts, bins))
        alive = inside > 0
        filled = np.add.reduceat(alive.astype(np.float64), starts)
        level = np.add.reduceat(inside, starts) / np.maximum(filled, 1.0)
        expanded = np.repeat(level, sizes) * alive
        mass = expanded.sum()
        if not mass > 0:
            continue
        p, q = clipped / total, expanded / mass
        # where Q has nothing and P has, the clipped tail fell into an empty bin: as bad as a tiny Q
        divergence = float((p[p > 0] * np.log(p[p > 0] / np.maximum(q[p > 0], 1e-9))).sum())
        if divergence < best_divergence:
            best_divergence, best_bins = divergence, bins
    return largest * best_bins / len(counts)
