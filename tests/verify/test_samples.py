"""Samples stay small, are spread over the images, and hold each kept image's largest logit."""

from __future__ import annotations

import numpy as np
import pytest

from gmf_edge.verify.samples import LOGITS_PER_IMAGE, MOST_IMAGES, MOST_LOGITS, LogitSampler, ParitySamples, evenly


def sampled(images: int, classes: int, batch: int) -> tuple[ParitySamples, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    reference = rng.standard_normal((images, classes)).astype(np.float32)
    engine = reference + np.float32(0.01)
    sampler = LogitSampler(images, classes)
    for start in range(0, images, batch):
        sampler.add(start, reference[start : start + batch], engine[start : start + batch])
    return sampler.finish(np.arange(images, dtype=np.float64), np.ones(images)), reference, engine


def test_a_small_set_is_kept_whole() -> None:
    found, reference, engine = sampled(20, 10, 8)
    assert sorted(found.reference.tolist()) == sorted(reference.ravel().tolist())
    assert sorted(found.engine.tolist()) == sorted(engine.ravel().tolist())
    assert sorted(found.reference[found.largest].tolist()) == sorted(reference.max(axis=1).tolist())
    assert found.errors.tolist() == list(range(20))


@pytest.mark.parametrize("classes", [2, 1000])
def test_a_large_set_is_thinned_over_all_images(classes: int) -> None:
    found, reference, _ = sampled(30_000 if classes == 2 else 3_000, classes, 512)
    assert len(found.reference) <= MOST_LOGITS
    assert found.largest.sum() == len(found.reference) // min(classes, LOGITS_PER_IMAGE)
    assert set(found.reference[found.largest].tolist()) <= set(reference.max(axis=1).tolist())
    np.testing.assert_allclose(found.engine - found.reference, 0.01, atol=1e-5)
    assert len(found.errors) == min(len(reference), MOST_IMAGES)
    assert (found.errors[0], found.errors[-1]) == (0, len(reference) - 1)


def test_batches_do_not_change_the_sample() -> None:
    (one, _, _), (other, _, _) = sampled(3_000, 50, 1000), sampled(3_000, 50, 7)
    np.testing.assert_array_equal(one.reference, other.reference)


def test_indices_are_even_and_hold_both_ends() -> None:
    assert evenly(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert evenly(101, 5).tolist() == [0, 25, 50, 75, 100]
