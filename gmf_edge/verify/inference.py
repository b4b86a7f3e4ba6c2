"""Logits of an engine, checked for their shape, in batch sizes that it takes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gmf_edge.engines.protocol import Engine, FloatArray
from gmf_edge.errors import EngineError
from gmf_edge.spec import BatchProfile


def served_logits(engine: Engine, images: FloatArray, classes: int, profile: BatchProfile | None) -> FloatArray:
    """The logits of a batch of any size, run in sizes that the profile has."""
    if profile is None:
        return logits_of(engine, images, classes)
    return np.concatenate([logits_of(engine, part, classes)[:real] for part, real in _served_parts(images, profile)])


def _served_parts(images: FloatArray, profile: BatchProfile) -> Iterator[tuple[FloatArray, int]]:
    """Parts of at most profile.max images, each filled up to profile.min with its last image; and how many are real."""
    for start in range(0, len(images), profile.max):
        part = images[start : start + profile.max]
        short = profile.min - len(part)
        yield (np.concatenate([part, np.repeat(part[-1:], short, axis=0)]) if short > 0 else part), len(part)


def logits_of(engine: Engine, images: FloatArray, classes: int) -> FloatArray:
    """Logits [B, classes] of a batch that the engine takes, in an array of their own.

    Raises:
        EngineError: the engine refuses the batch, or returns another shape.
    """
    logits = np.asarray(engine.infer(np.ascontiguousarray(images)))
    if logits.shape != (len(images), classes):
        raise EngineError(
            f"the engine returned logits of shape {logits.shape} for {len(images)} images and {classes} classes",
            "build the engine again from this bundle",
        )
    # a copy, because a backend may hand out the buffer that it fills again
    return np.array(logits, np.float32)
