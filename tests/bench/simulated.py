"""Engines that take as long as they are told to, on a clock of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmf_edge.engines.protocol import EngineFacts, FloatArray
from gmf_edge.spec import Task


class Clock:
    """Seconds that pass only while an engine runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []

    def __call__(self) -> float:
        return self.now


class SimulatedEngine:
    """An engine of `ms` a call (a number, or a function of the batch and the time), with noise.

    Args:
        noise: standard deviation of a call's time, as a share of it.
        outliers: share of calls that take two to four times as long.
        on_gpu: whether it has GPU compute times; the host then sees `overhead_ms` more.
    """

    facts = EngineFacts("simulated", "0", "clock", "portable")
    task = Task.CLASSIFY

    def __init__(
        self,
        clock: Clock,
        name: str,
        ms: float | Callable[[int, float], float],
        *,
        noise: float = 0.0,
        outliers: float = 0.0,
        on_gpu: bool = True,
        overhead_ms: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.clock, self.name, self.ms, self.on_gpu, self.overhead_ms = clock, name, ms, on_gpu, overhead_ms
        self.noise, self.outliers, self.rng = noise, outliers, rng or np.random.default_rng(0)

    def _draw(self, batch: int, count: int) -> NDArray[np.float64]:
        mean = self.ms(batch, self.clock.now) if callable(self.ms) else self.ms
        times = mean * (1 + self.noise * self.rng.standard_normal(count))
        times *= np.where(self.rng.random(count) < self.outliers, self.rng.uniform(2, 4, count), 1.0)
        return np.maximum(times, mean / 10)

    def compute_times_ms(self, images: FloatArray, count: int) -> NDArray[np.float64] | None:
        if not self.on_gpu:
            return None
        self.clock.ran.append(self.name)
        times = self._draw(len(images), count)
        self.clock.now += float(times.sum()) / 1000
        return times

    def infer(self, images: FloatArray) -> Any:
        self.clock.ran.append(self.name)
        self.clock.now += (float(self._draw(len(images), 1)[0]) + self.overhead_ms) / 1000
        return np.zeros((len(images), 2), np.float32)

    def close(self) -> None:
        """Nothing to close."""

    def __enter__(self) -> SimulatedEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
