"""Statistics of activations: NumPy's figures, whatever the batch size, and memory that stays flat."""

from __future__ import annotations

import numpy as np
import pytest
from int8_helpers import PREPROCESS

from gmf_edge.errors import CalibrationError
from gmf_edge.precision.activations import HISTOGRAM_BINS, histogram_of, observe
from gmf_edge.precision.calibration_images import draw
from gmf_edge.precision.thresholds import threshold


def histogram(values):
    largest = float(np.abs(values).max())
    return histogram_of(values, largest), largest


def test_histogram_holds_every_value_in_its_bin():
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    counts, largest = histogram(values)
    assert counts.sum() == values.size
    edges = np.linspace(0, largest, HISTOGRAM_BINS + 1)
    expected, _ = np.histogram(np.abs(values), edges)
    # a value on an edge may fall to either side of it in FP32
    assert np.abs(counts - expected).sum() <= 0.01 * values.size


def test_statistics_are_numpys(fused, digits):
    drawn = draw(digits, 32)
    inputs = np.concatenate([batch.inputs for batch in drawn.batches(PREPROCESS, 8)])
    found = observe(fused, lambda: iter([inputs[:20], inputs[20:]]), images=32)
    images = found.tensors["images"]
    np.testing.assert_allclose(images.channel_largest, np.abs(inputs).max(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(images.channel_mean, inputs.mean(axis=(0, 2, 3), dtype=np.float64), rtol=1e-5, atol=1e-7)
    assert images.histogram.sum() == inputs.size
    assert found.images == 32


def test_batch_size_does_not_matter(fused, digits):
    drawn = draw(digits, 32)
    inputs = np.concatenate([batch.inputs for batch in drawn.batches(PREPROCESS, 8)])
    one = observe(fused, lambda: iter([inputs]), images=32)
    many = observe(fused, lambda: iter(np.split(inputs, 8)), images=32)
    for name, found in one.tensors.items():
        np.testing.assert_allclose(found.channel_largest, many.tensors[name].channel_largest, rtol=1e-4)
        assert threshold(found, "mse") == pytest.approx(threshold(many.tensors[name], "mse"), rel=0.02)


def test_one_batch_at_a_time_is_alive(fused, digits):
    import weakref

    drawn = draw(digits, 32)
    alive: list[weakref.ref] = []

    def batches():
        for batch in drawn.batches(PREPROCESS, 4):
            copy = batch.inputs.copy()
            alive.append(weakref.ref(copy))
            del batch
            yield copy
            del copy
            assert sum(ref() is not None for ref in alive) <= 2

    observe(fused, batches, images=32)
    assert len(alive) == 16


def test_activations_that_are_not_finite_are_named(fused):
    broken = np.full((1, 3, 64, 64), np.nan, np.float32)
    with pytest.raises(CalibrationError, match="images is NaN or infinite"):
        observe(fused, lambda: iter([broken]), images=1)


def test_progress_reaches_the_end_and_never_goes_back(fused, digits):
    drawn = draw(digits, 32)
    seen: list[float] = []
    observe(
        fused,
        lambda: (batch.inputs for batch in drawn.batches(PREPROCESS, 8)),
        images=32,
        progress=lambda fraction, message: seen.append(fraction or 0.0),
    )
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
