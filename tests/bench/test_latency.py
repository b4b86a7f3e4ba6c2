"""Latency by trtexec's conventions, on an engine whose clock is ours."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parent))

from simulated import Clock, SimulatedEngine

from gmf_edge.bench import latency
from gmf_edge.bench.latency import measure_latency
from gmf_edge.bench.times import percentile_of
from gmf_edge.engines.protocol import EngineFacts, FloatArray
from gmf_edge.errors import SpecError
from gmf_edge.spec import Task


class TimedEngine:
    """An engine that takes the given seconds, one inference after the other, on a clock of its own."""

    facts = EngineFacts("onnxruntime", "0", "clock", "portable")
    task = Task.CLASSIFY

    def __init__(self, *seconds: float) -> None:
        self.seconds, self.now, self.batches = seconds, 0.0, list[int]()

    def infer(self, images: FloatArray) -> FloatArray:
        self.now += self.seconds[len(self.batches) % len(self.seconds)]
        self.batches.append(len(images))
        return np.zeros((len(images), 2), np.float32)

    def compute_times_ms(self, images: FloatArray, count: int) -> NDArray[np.float64] | None:
        return None

    def close(self) -> None:
        """Nothing to close."""

    def __enter__(self) -> TimedEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> type[TimedEngine]:
    """TimedEngine, with perf_counter following the one that was made last."""
    engines: list[TimedEngine] = []

    class Clocked(TimedEngine):
        def __init__(self, *seconds: float) -> None:
            super().__init__(*seconds)
            engines.append(self)

    monkeypatch.setattr(latency.time, "perf_counter", lambda: engines[-1].now)
    return Clocked


@pytest.mark.parametrize(
    ("count", "percentile", "index"),
    # by trtexec's own function, compiled; the last four differ in double precision, where 1 - 0.9 is a little below a tenth
    [(100, 50, 49), (10, 99, 9), (10, 95, 9), (1, 99, 0), (7, 100, 6), (10, 90, 8), (100, 90, 89), (100, 99, 99), (1000, 99, 990)],
)
def test_percentiles_are_trtexecs(count: int, percentile: float, index: int) -> None:
    assert percentile_of(list(range(count)), percentile) == index


def test_a_percentile_is_one_of_the_times_and_rises_with_p() -> None:
    times = sorted(np.random.default_rng(0).uniform(1, 2, 57).tolist())
    chosen = [percentile_of(times, p) for p in (1, 25, 50, 75, 90, 99, 100)]
    assert set(chosen) <= set(times)
    assert all(low <= high for low, high in pairwise(chosen))
    assert chosen[-1] == times[-1]


def test_both_the_duration_and_the_iterations_are_reached(clocked: type[TimedEngine]) -> None:
    long = measure_latency(clocked(0.001), 1, (32, 32), warmup_ms=0, duration_s=0.5, iterations=10)
    many = measure_latency(clocked(0.125), 1, (32, 32), warmup_ms=0, duration_s=0.5, iterations=10)
    assert long.iterations == pytest.approx(500, abs=1)
    assert many.iterations == 10


def test_the_warm_up_is_not_timed(clocked: type[TimedEngine]) -> None:
    engine = clocked(10.0, 0.25, 0.25, 0.25, 0.25)
    found = measure_latency(engine, 4, (32, 32), warmup_ms=200, duration_s=0, iterations=4)
    assert found.host.max_ms == 250
    assert len(engine.batches) == 5
    assert set(engine.batches) == {4}


def test_figures_are_those_of_the_times(clocked: type[TimedEngine]) -> None:
    engine = clocked(0.5, 0.125, 0.25, 0.5, 0.125)
    found = measure_latency(engine, 2, (32, 32), warmup_ms=0, duration_s=0, iterations=4, percentiles=(50, 75))
    times = [125.0, 250.0, 500.0, 125.0]
    assert (found.batch, found.iterations) == (2, 4)
    assert (found.host.mean_ms, found.host.median_ms, found.host.min_ms, found.host.max_ms) == (250.0, 187.5, 125.0, 500.0)
    assert found.host.percentiles_ms == {"50": 125.0, "75": 250.0}
    assert found.throughput == pytest.approx(2 * 4 / 1.0)
    assert found.host.variation == pytest.approx(np.std(times) / np.mean(times))
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert written["steady"] is False
    assert (written["batch"], written["median_ms"], written["gpu_compute"], written["device"]) == (2, 187.5, None, None)


def test_a_steady_run_is_called_steady(clocked: type[TimedEngine]) -> None:
    assert measure_latency(clocked(0.25), 1, (32, 32), duration_s=0).to_json()["steady"] is True


def test_a_gpu_has_both_times_and_its_state_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(latency.time, "perf_counter", clock)
    state = {"sm_clock_mhz": 1980.0, "memory_clock_mhz": 3201.0, "throttle_reasons": []}
    states = iter([state, {**state, "throttle_reasons": ["sw_power_cap"]}])
    monkeypatch.setattr(latency, "device_state", lambda: next(states))
    engine = SimulatedEngine(clock, "gpu", 2.0, overhead_ms=0.5)
    found = measure_latency(engine, 4, (4, 4), warmup_ms=100, duration_s=1.0, iterations=10)
    assert found.gpu_compute is not None
    assert (found.gpu_compute.median_ms, found.host.median_ms) == (pytest.approx(2.0), pytest.approx(2.5))
    assert found.gpu_compute.percentiles_ms.keys() == found.host.percentiles_ms.keys()
    # the warm-up, and a second for each of the two
    assert clock.now == pytest.approx(0.1 + 1.0 + 1.0, abs=0.05)
    assert found.device is not None
    assert [found.device[when]["throttle_reasons"] for when in ("before", "after")] == [[], ["sw_power_cap"]]
    assert ["sw_power_cap" in note for note in found.notes] == [True]
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["gpu_compute"]["median_ms"] == pytest.approx(2.0)


def test_steady_is_judged_by_the_gpus_times_where_it_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(latency.time, "perf_counter", clock)
    monkeypatch.setattr(latency, "device_state", lambda: None)

    class BusyHost(SimulatedEngine):
        def infer(self, images: FloatArray) -> NDArray[np.float32]:
            self.overhead_ms = 0.1 + 2.9 * (len(self.clock.ran) % 2)
            return super().infer(images)

    found = measure_latency(BusyHost(clock, "gpu", 2.0), 1, (4, 4), duration_s=0.5)
    assert found.host.variation > 0.1
    assert found.to_json()["steady"] is True


@pytest.mark.parametrize(
    "settings",
    [
        {"warmup_ms": -1.0},
        {"duration_s": -1.0},
        {"iterations": 0},
        {"percentiles": (0.0,)},
        {"percentiles": (101.0,)},
        {"duration_s": float("nan"), "iterations": 0},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="benchmark settings"):
        measure_latency(TimedEngine(0.1), 1, (32, 32), **settings)  # type: ignore[arg-type]
