"""Geometry: scales, ticks, and figures that are not drawn where there is nothing to draw."""

from __future__ import annotations

import re

import numpy as np
import pytest

from gmf_edge.report import charts
from gmf_edge.report.charts import Chart, Scale

MANY = np.random.default_rng(0)


def numbers(chart: Chart) -> list[float]:
    found = [float(part) for mark in chart.marks for part in re.findall(r"-?\d+\.?\d*", mark.path)]
    assert found, "nothing is drawn"
    return found


def test_a_scale_maps_its_ends_and_keeps_others_inside() -> None:
    x = Scale(0, 10, 40, 340)
    assert (x.at(0), x.at(10), x.at(5), x.at(99), x.at(-1)) == (40, 340, 190, 340, 40)
    log = Scale(1e-4, 1, 0, 100, log=True)
    assert (log.at(1e-4), log.at(1e-2), log.at(0)) == (0, 50, 0)


@pytest.mark.parametrize(("low", "high"), [(0, 7), (-3.2, 11.8), (0.001, 0.0042), (0, 12345)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = Scale(low, high, 0, 100).ticks()
    assert 2 <= len(ticks) <= 6
    assert all(0 <= tick.at <= 100 for tick in ticks)
    assert len({tick.label for tick in ticks}) == len(ticks)


def test_logarithmic_ticks_are_powers_of_ten() -> None:
    labels = [tick.label for tick in Scale(1e-5, 10, 0, 100, log=True).ticks(10)]
    assert labels == ["10⁻⁵", "10⁻⁴", "10⁻³", "0.01", "0.1", "1", "10"]


def test_points_outside_are_kept_in_the_box_and_what_is_not_finite_is_left_out() -> None:
    reference = np.array([1.0, np.nan, 3.0, 4.0], np.float32)
    engine = np.array([1.0, 2.0, np.inf, 4.5], np.float32)
    chart = charts.scatter(reference, engine, np.array([True, False, False, False]))
    assert chart is not None
    assert "2 logits" in chart.caption
    assert "0.5" in chart.caption
    assert all(0 <= number <= charts.WIDTH for number in numbers(chart))


@pytest.mark.parametrize("values", [np.array([]), np.array([np.nan]), np.zeros(3)], ids=["none", "nan", "zero"])
def test_no_figure_is_drawn_of_nothing(values: np.ndarray) -> None:
    assert charts.error_histogram(values, np.ones(len(values))) is None
    if not len(values) or np.isnan(values).any():
        assert charts.scatter(values, values, values == 0) is None
        assert charts.latency_histogram(values, 1, 1.0, ("99", 2.0), "host latency") is None
    assert charts.sweep([(1, 5.0)], "", "", str) is None


def test_every_error_is_in_the_histogram() -> None:
    errors, margins = 10 ** MANY.normal(-3, 1, 500), 10 ** MANY.normal(0, 0.3, 500)
    chart = charts.error_histogram(errors, margins)
    assert chart is not None
    for mark in chart.marks:
        assert mark.path.count("M") > 3
    assert "500 images" in chart.caption


def test_one_stray_time_does_not_squeeze_the_others() -> None:
    times = np.append(MANY.normal(10, 0.5, 1000), 5000.0)
    chart = charts.latency_histogram(times, 8, 10.0, ("99", 11.3), "host latency")
    assert chart is not None
    assert "longer" in chart.caption
    assert "5,000 ms" in chart.caption
    assert chart.marks[0].path.count("M") > 15


def test_equal_times_still_make_a_figure() -> None:
    chart = charts.latency_histogram(np.full(5, 2.0), 1, 2.0, ("99", 2.0), "host latency")
    assert chart is not None
    assert all(np.isfinite(numbers(chart)))


def test_the_interval_shows_loss_limit_and_whisker() -> None:
    chart = charts.interval(-0.2, -1.0, 0.6, 0.5)
    shaded, _, whisker, dot = chart.marks
    assert [mark.path != "" for mark in (shaded, whisker, dot)] == [True] * 3
    assert all(0 <= number <= charts.WIDTH for number in numbers(chart) if number > 0)
