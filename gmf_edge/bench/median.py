"""How sure a median is: a confidence interval that assumes nothing about the distribution of the noise.

The k-th smallest of n independent values is above the median of their distribution with the probability that fewer than k of n fair
coins fall on tails, whatever that distribution is. Source: the sign test; David and Nagaraja, Order Statistics, section 7.1.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MedianInterval:
    """A median and the interval that holds the distribution's median.

    Attributes:
        median: of the values.
        low, high: bounds; the true median is below `low` with at most the probability 1 - confidence, and so above `high`.
    """

    median: float
    low: float
    high: float


def median_interval(values: Sequence[float], confidence: float) -> MedianInterval:
    """The interval of the median; unbounded on both sides where the values are too few for this confidence.

    Args:
        values: independent measurements, at least one.
        confidence: of each bound by itself, above 0.5 and below 1.
    """
    ordered = sorted(values)
    rank = _rank(len(ordered), confidence)
    middle = statistics.median(ordered)
    if rank == 0:
        return MedianInterval(middle, -math.inf, math.inf)
    return MedianInterval(middle, ordered[rank - 1], ordered[-rank])


def _rank(count: int, confidence: float) -> int:
    """The largest k for which P(fewer than k tails among `count` fair coins) <= 1 - confidence."""
    # in whole numbers, because 2 ** count leaves the floats: `below` of the 2 ** count tosses have fewer than `rank` tails
    allowed = round((1 - confidence) * 2**53) * 2**count >> 53
    below, rank, ways = 0, 0, 1  # ways: count over rank
    while below + ways <= allowed:
        below += ways
        ways = ways * (count - rank) // (rank + 1)
        rank += 1
    return rank
