"""Single calls of an engine: what they are given, and how long each takes."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from gmf_edge.engines.protocol import Engine, FloatArray, inference_of

# seconds, of the host
Clock = Callable[[], float]


def seeded_images(batch: int, image_size: tuple[int, int]) -> FloatArray:
    """Noise [batch, 3, H, W] as input: latency does not depend on what is on a picture."""
    return np.random.default_rng(0).standard_normal((batch, 3, *image_size)).astype(np.float32)


def warm_up(engine: Engine, images: FloatArray, seconds: float, *, least: int = 1, clock: Clock | None = None) -> None:
    """Untimed inferences for so long, and at least so many.

    Raises:
        EngineError: the engine refuses the images.
    """
    clock = clock or time.perf_counter
    infer = inference_of(engine)
    end, calls = clock() + seconds, 0
    while calls < least or clock() < end:
        infer(images)
        calls += 1


def call_times_ms(engine: Engine, images: FloatArray, calls: int, *, on_gpu: bool, clock: Clock | None = None) -> list[float]:
    """Milliseconds of each of so many inferences: GPU compute times, or by the host's clock.

    Args:
        engine: opened; with GPU times where `on_gpu` is set.
        images: float32 [B, 3, H, W].
        calls: at least 1.
        on_gpu: whose clock.
        clock: the host's.

    Raises:
        EngineError: the engine refuses the images.
    """
    if on_gpu:
        found = engine.compute_times_ms(images, calls)
        assert found is not None, "an engine has GPU times or has none"
        return [float(ms) for ms in found]
    clock = clock or time.perf_counter
    infer = inference_of(engine)
    times = []
    for _ in range(calls):
        before = clock()
        infer(images)
        times.append((clock() - before) * 1000)
    return times
