"""Statistics of times: trtexec's percentiles, and an interval of the median that says whether a run was steady."""

from __future__ import annotations

import numpy as np
import pytest

from gmf_edge.bench.times import STEADY_SHARE, Times, quartiles


def test_a_noisy_run_with_a_sure_median_is_steady() -> None:
    """What a limit on the variation would call unsteady on every CPU."""
    rng = np.random.default_rng(0)
    times = 10 * (1 + 0.05 * rng.standard_normal(400))
    times[rng.random(400) < 0.05] *= 3
    found = Times.of(times.tolist())
    assert found.variation > 0.1
    assert found.steady
    assert found.uncertainty is not None
    assert found.uncertainty < STEADY_SHARE


def test_a_run_that_drifts_is_unsteady_however_many_times_it_has() -> None:
    """As one whose clocks fall: values that follow each other are no independent measurements."""
    found = Times.of(np.linspace(10, 13, 5000).tolist())
    assert not found.steady
    assert found.median_low_ms is not None
    assert found.median_high_ms is not None
    assert found.median_low_ms < 11.3
    assert found.median_high_ms > 11.7


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    true_median = 10 + np.log(2)
    held = 0
    for _ in range(400):
        found = Times.of((10 + rng.exponential(1.0, 20)).tolist())
        assert found.median_low_ms is not None
        assert found.median_high_ms is not None
        held += found.median_low_ms <= true_median <= found.median_high_ms
    assert 0.93 < held / 400 <= 1.0


@pytest.mark.parametrize("count", [1, 2, 5])
def test_too_few_times_have_no_interval_and_are_not_steady(count: int) -> None:
    found = Times.of([1.0] * count)
    assert (found.median_low_ms, found.median_high_ms, found.uncertainty, found.steady) == (None, None, None, False)


def test_transfers_that_took_no_time_are_no_division_by_zero() -> None:
    found = Times.of([0.0] * 10)
    assert (found.mean_ms, found.variation, found.uncertainty) == (0.0, 0.0, None)


def test_quartiles_of_few_values() -> None:
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
