"""The interval of a median: its bounds by the definition, and how often they hold, whatever the noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gmf_edge.bench.median import median_interval


def test_bounds_are_those_of_the_sign_test_tables() -> None:
    # Dixon and Mood: of 10 pairs 1, of 25 pairs 7, of 50 pairs 17 and of 90 pairs 35 of the rarer sign for 5 % on two sides
    for count, rarer in ((10, 1), (25, 7), (50, 17), (90, 35)):
        values = list(range(count))
        interval = median_interval(values, 0.975)
        assert (interval.low, interval.high) == (rarer, count - 1 - rarer)


def test_the_order_of_the_values_does_not_matter() -> None:
    values = np.random.default_rng(0).normal(size=50).tolist()
    assert median_interval(values, 0.99) == median_interval(values[::-1], 0.99)


def test_too_few_values_bound_nothing() -> None:
    interval = median_interval([1.0, 2.0, 3.0], 0.99)
    assert (interval.median, interval.low, interval.high) == (2.0, -math.inf, math.inf)


def test_thousands_of_values_do_not_overflow() -> None:
    interval = median_interval([float(value) for value in range(5000)], 0.99)
    # the normal approximation: half of n less 2.326 * sqrt(n) / 2
    assert interval.low == pytest.approx(2500 - 2.326 * math.sqrt(5000) / 2, abs=2)


@pytest.mark.parametrize("draw", ["normal", "exponential", "standard_cauchy"])
@pytest.mark.parametrize("count", [8, 15, 100])
def test_a_bound_is_wrong_as_rarely_as_it_says(draw: str, count: int) -> None:
    rng = np.random.default_rng(1)
    true_median = {"normal": 0.0, "exponential": math.log(2), "standard_cauchy": 0.0}[draw]
    found = [median_interval(getattr(rng, draw)(size=count).tolist(), 0.95) for _ in range(2000)]
    # 5 % and three standard deviations of 2000 draws
    assert np.mean([interval.low > true_median for interval in found]) <= 0.065
    assert np.mean([interval.high < true_median for interval in found]) <= 0.065
