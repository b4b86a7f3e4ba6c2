"""Thresholds by definition, and beside ONNX Runtime's own."""

from __future__ import annotations

import numpy as np
import pytest

from gmf_edge.precision.activations import HISTOGRAM_BINS, TensorStatistics, histogram_of
from gmf_edge.precision.recipe import METHODS
from gmf_edge.precision.thresholds import entropy_threshold, mse_threshold, percentile_threshold, threshold


def histogram(values):
    largest = float(np.abs(values).max())
    return histogram_of(values, largest), largest


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.99, 100.0])
def test_percentile_is_numpys_within_a_bin(percentile):
    values = np.random.default_rng(1).laplace(size=200_000).astype(np.float32)
    counts, largest = histogram(values)
    found = percentile_threshold(counts, largest, percentile)
    exact = np.percentile(np.abs(values), percentile)
    assert abs(found - exact) <= 1.01 * largest / HISTOGRAM_BINS


def test_percentile_agrees_with_onnx_runtimes_collector():
    calibrators = pytest.importorskip("onnxruntime.quantization.calibrate")
    values = np.random.default_rng(2).laplace(size=(4, 5000)).astype(np.float32)
    counts, largest = histogram(values)
    collector = calibrators.HistogramCollector(
        method="percentile", symmetric=True, num_bins=HISTOGRAM_BINS, num_quantized_bins=128, percentile=99.0, scenario="same"
    )
    collector.collect({"x": [values]})
    low, high = collector.compute_collection_result()["x"][:2]
    theirs = max(-float(low), float(high))
    # theirs counts signed values about zero, in bins twice as wide
    assert abs(percentile_threshold(counts, largest, 99.0) - theirs) <= 3 * largest / HISTOGRAM_BINS


def test_mse_threshold_has_the_smallest_error_of_all_candidates():
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.standard_normal(50_000), [30.0]]).astype(np.float32)
    counts, largest = histogram(values)
    found = mse_threshold(counts, largest)

    def error(threshold):
        step = threshold / 127
        return float(((values - step * np.clip(np.rint(values / step), -127, 127)) ** 2).sum())

    errors = {share: error(largest * share) for share in np.linspace(0.1, 1, 37)}
    assert error(found) <= 1.02 * min(errors.values())
    assert error(found) < 0.9 * errors[1.0]


def test_entropy_clips_an_outlier_and_keeps_a_uniform_distribution():
    rng = np.random.default_rng(4)
    spread, largest = histogram(rng.uniform(-1, 1, 100_000).astype(np.float32))
    assert entropy_threshold(spread, largest) > 0.9
    outlier, largest = histogram(np.concatenate([rng.standard_normal(100_000), [60.0]]).astype(np.float32))
    assert 2.0 < entropy_threshold(outlier, largest) < 12.0


@pytest.mark.parametrize("method", METHODS)
def test_threshold_of_silence_is_zero_and_never_above_the_largest(method):
    silent = TensorStatistics(np.zeros(1), np.zeros(1), 0.0, histogram_of(np.zeros(8), 0.0))
    assert threshold(silent, method) == 0.0
    counts, largest = histogram(np.random.default_rng(5).standard_normal(5000).astype(np.float32))
    found = threshold(TensorStatistics(np.zeros(1), np.zeros(1), largest, counts), method)
    assert 0 < found <= largest * (1 + 1e-12)
