"""Latency and throughput of an opened engine, by trtexec's conventions.

Warm-up, then inferences until both a duration and a number of iterations are reached; see times.py for the figures.

host latency        end to end, from images in host memory to logits in host memory, one inference at a time, the calling Python included
GPU compute time    where there is a GPU, by events on its clock: what trtexec calls so
enqueue time        of the CPU's calls, host to device and device to host by events, and their sum with the compute: what
                    trtexec calls latency; from an engine that can be traced (engines.trace), with what is recorded in `modes`
throughput          images over wall time: with `modes["in_flight"]` inferences in flight where the engine can be traced, else one at a time

Throughput of several streams is measured with all of them busy, never computed from a latency.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmf_edge.bench.calls import seeded_images, warm_up
from gmf_edge.bench.device import device_state, state_notes
from gmf_edge.bench.energy import EnergyMeter
from gmf_edge.bench.load import CpuLoad
from gmf_edge.bench.times import PERCENTILES, Times
from gmf_edge.engines.protocol import Engine, FloatArray, inference_of
from gmf_edge.engines.trace import InferenceTrace, StreamingEngine, Traced, TracedEngine, TracePlan
from gmf_edge.errors import SpecError

# GPU times asked for at once: their events are all there at the same time
COMPUTE_CALLS = 10


@dataclass(frozen=True)
class BenchPlan:
    """How an engine is measured.

    Attributes:
        warmup_ms: untimed inferences before.
        duration_s, iterations: both are reached.
        percentiles: to report, each above 0 and at most 100.
        transfers: GPU: whether images and logits are copied with every traced inference (host latency always has them).
        spin_wait: GPU: whether the CPU spins on the traced inferences' events.

    Raises:
        SpecError: nonsense.
    """

    warmup_ms: float = 200.0
    duration_s: float = 3.0
    iterations: int = 10
    percentiles: tuple[float, ...] = PERCENTILES
    transfers: bool = True
    spin_wait: bool = False

    def __post_init__(self) -> None:
        # written so that NaN is refused too
        times_fit = 0 <= self.warmup_ms < math.inf and 0 <= self.duration_s < math.inf
        if not times_fit or self.iterations < 1 or not all(0 < p <= 100 for p in self.percentiles):
            raise SpecError(
                "benchmark settings are out of range",
                "give finite times of at least 0, an iteration and percentiles above 0 and at most 100",
            )

    def traced(self, streams: int = 1) -> TracePlan:
        """The same for an engine that can be traced."""
        return TracePlan(self.warmup_ms / 1000, self.duration_s, self.iterations, self.transfers, self.spin_wait, streams)


@dataclass(frozen=True)
class Steps:
    """Statistics of the steps of traced inferences.

    Attributes:
        enqueue: CPU time of the calls.
        h2d, d2h: copies to the GPU and back; zero without transfers.
        latency: h2d, compute and d2h together.
    """

    enqueue: Times
    h2d: Times
    d2h: Times
    latency: Times


@dataclass(frozen=True)
class Latency:
    """Milliseconds a batch.

    Attributes:
        batch: images an inference.
        iterations: timed inferences.
        host: host latency.
        gpu_compute: GPU compute time; None on a CPU.
        throughput: images a second of wall time; see modes["in_flight"].
        plan: how it was measured.
        modes: "cuda_graph", "transfers", "spin_wait" (None where they mean nothing), "streams", "in_flight".
        steps: of an engine that can be traced, else None.
        device: {"before", "after"} of bench.device.device_state round the measurement; None on a CPU.
        cpu: bench.load.CpuLoad.to_json of the measurement; None where it cannot be read.
        energy: {"joules_per_image", "watts", "source"}, the idle draw included; None where it cannot be read.
        notes: what makes the figures doubtful.
        traces: every timed inference, for trtexec's export; of a CPU's, all is compute.
    """

    batch: int
    iterations: int
    host: Times
    gpu_compute: Times | None
    throughput: float
    plan: BenchPlan
    modes: Mapping[str, Any]
    steps: Steps | None = None
    device: Mapping[str, Any] | None = None
    cpu: Mapping[str, Any] | None = None
    energy: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    traces: tuple[InferenceTrace, ...] = field(default=(), repr=False)

    @property
    def decisive(self) -> Times:
        """What engines are compared by: GPU compute time where there is one, else host latency."""
        return self.gpu_compute or self.host

    def to_json(self) -> dict[str, Any]:
        """Plain values: the host latency's beside the others, and whether the run was steady, by the GPU's times where it has them."""
        steps = {name: times.to_json() for name, times in vars(self.steps).items()} if self.steps else {}
        return {
            "batch": self.batch,
            "iterations": self.iterations,
            **self.host.to_json(),
            "gpu_compute": None if self.gpu_compute is None else self.gpu_compute.to_json(),
            **{name: steps.get(name) for name in ("enqueue", "h2d", "d2h", "latency")},
            "throughput": self.throughput,
            "warmup_ms": self.plan.warmup_ms,
            "duration_s": self.plan.duration_s,
            "modes": dict(self.modes),
            "device": self.device,
            "cpu": self.cpu,
            "energy": self.energy,
            "notes": list(self.notes),
            "steady": self.decisive.steady,
        }


def measure_latency(
    engine: Engine,
    batch: int,
    image_size: tuple[int, int],
    plan: BenchPlan | None = None,
    **settings: Any,
) -> Latency:
    """Time inferences of one batch size.

    Args:
        engine: opened.
        batch: within the engine's profile.
        image_size: (H, W) in pixels.
        plan: how.
        settings: fields of BenchPlan, instead of one.

    Raises:
        SpecError: nonsense settings.
        EngineError: the engine refuses the batch.
    """
    plan = plan or BenchPlan(**settings)
    images = seeded_images(batch, image_size)
    warm_up(engine, images, plan.warmup_ms / 1000)
    on_gpu = engine.compute_times_ms(images, 1) is not None
    before = device_state() if on_gpu else None
    load = CpuLoad()
    meter = EnergyMeter(on_gpu)
    traced = engine.trace(images, plan.traced()) if on_gpu and isinstance(engine, TracedEngine) else None
    if traced is not None:
        meter.stop(batch * len(traced.traces))
        compute = [trace.compute_ms for trace in traced.traces]
    else:
        compute = _compute_times(engine, images, plan) if on_gpu else []
        meter = EnergyMeter(on_gpu)
    starts, times_ms, wall_s = _host_times(engine, images, plan)
    if traced is None:
        meter.stop(batch * len(times_ms))
    load.stop()
    after = device_state() if on_gpu else None
    gpu_compute = Times.of(compute, plan.percentiles) if on_gpu else None
    host = Times.of(times_ms, plan.percentiles)
    return Latency(
        batch=batch,
        iterations=len(times_ms),
        host=host,
        gpu_compute=gpu_compute,
        throughput=batch * (len(traced.traces) / traced.wall_s if traced else len(times_ms) / wall_s),
        plan=plan,
        modes=modes_of(traced, plan),
        steps=_steps(traced, plan) if traced else None,
        device={"before": before, "after": after} if on_gpu else None,
        cpu=load.to_json(),
        energy=meter.to_json(),
        notes=(*state_notes(before, after), *load.notes(), *_steadiness_notes(batch, gpu_compute or host)),
        traces=traced.traces if traced else _host_traces(starts, times_ms),
    )


def modes_of(traced: Traced | None, plan: BenchPlan) -> dict[str, Any]:
    """What is always recorded beside times."""
    if traced is None:
        return {"cuda_graph": None, "transfers": None, "spin_wait": None, "streams": 1, "in_flight": 1}
    return {
        "cuda_graph": traced.cuda_graph,
        "transfers": plan.transfers,
        "spin_wait": plan.spin_wait,
        "streams": len({trace.stream for trace in traced.traces}),
        "in_flight": traced.in_flight,
    }


@dataclass(frozen=True)
class Throughput:
    """Images a second with several inferences in flight.

    Attributes:
        batch: images an inference.
        streams: that ran at a time.
        images_per_s: of wall time, over all streams.
        latency: of each inference under this load: host latency, or trtexec's latency of an engine that can be traced; None of an
            engine that keeps the streams by itself.
        modes: as Latency.modes.
        energy: as Latency.energy.
    """

    batch: int
    streams: int
    images_per_s: float
    latency: Times | None
    modes: Mapping[str, Any]
    energy: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "latency": None if self.latency is None else self.latency.to_json()}


def measure_throughput(
    engines: Sequence[Engine], batch: int, image_size: tuple[int, int], streams: int, plan: BenchPlan
) -> Throughput:
    """Throughput with `streams` inferences running at a time.

    Args:
        engines: one that was opened with so many streams, or one opened engine a stream, each used by a thread of its own.
        batch: within the engines' profile.
        image_size: (H, W) in pixels.
        streams: at least 1.
        plan: how; warm-up, duration and iterations are each stream's.

    Raises:
        EngineError: an engine cannot run.
    """
    images = seeded_images(batch, image_size)
    first = engines[0]
    on_gpu = first.compute_times_ms(images, 1) is not None
    if on_gpu and isinstance(first, TracedEngine):
        meter = EnergyMeter(on_gpu)
        traced = first.trace(images, plan.traced(streams))
        meter.stop(batch * len(traced.traces))
        latency = Times.of([trace.latency_ms for trace in traced.traces], plan.percentiles)
        rate = batch * len(traced.traces) / traced.wall_s
        return Throughput(batch, streams, rate, latency, modes_of(traced, plan), meter.to_json())
    if len(engines) < streams:
        assert isinstance(first, StreamingEngine), "one engine for several streams keeps them itself"
        return _streamed_throughput(first, images, streams, plan)
    return _threaded_throughput(engines[:streams], images, plan, on_gpu)


def _streamed_throughput(engine: StreamingEngine, images: FloatArray, streams: int, plan: BenchPlan) -> Throughput:
    def fed(seconds: float, least: int) -> Iterator[FloatArray]:
        start, given = time.perf_counter(), 0
        while time.perf_counter() - start < seconds or given < least:
            given += 1
            yield images

    for _ in engine.infer_many(fed(plan.warmup_ms / 1000, streams)):
        pass
    meter = EnergyMeter(on_gpu=False)
    began = time.perf_counter()
    done = sum(1 for _ in engine.infer_many(fed(plan.duration_s, streams * plan.iterations)))
    wall_s = time.perf_counter() - began
    meter.stop(len(images) * done)
    modes = {**modes_of(None, plan), "streams": streams, "in_flight": streams}
    return Throughput(len(images), streams, len(images) * done / wall_s, None, modes, meter.to_json())


def _threaded_throughput(engines: Sequence[Engine], images: FloatArray, plan: BenchPlan, on_gpu: bool) -> Throughput:
    """All streams start together; what is counted ended while all of them still ran."""
    ready = threading.Barrier(len(engines) + 1)
    ends: list[list[float]] = [[] for _ in engines]
    times_ms: list[list[float]] = [[] for _ in engines]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        infer = inference_of(engines[number])
        try:
            warm_up(engines[number], images, plan.warmup_ms / 1000)
            ready.wait()
            start = now = time.perf_counter()
            while now - start < plan.duration_s or len(ends[number]) < plan.iterations:
                earlier = now
                infer(images)
                now = time.perf_counter()
                ends[number].append(now)
                times_ms[number].append((now - earlier) * 1000)
        except threading.BrokenBarrierError:
            pass  # another stream failed, and tells why
        except BaseException as error:  # told to whoever waits below
            failures.append(error)
            ready.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(engines))]
    for thread in threads:
        thread.start()
    meter = None
    try:
        ready.wait()
        began = time.perf_counter()
        meter = EnergyMeter(on_gpu)
    except threading.BrokenBarrierError:
        began = time.perf_counter()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    assert meter is not None
    meter.stop(len(images) * sum(map(len, ends)))
    # the slower streams' last inferences have the machine for themselves
    until = min(stream[-1] for stream in ends)
    done = sum(sum(end <= until for end in stream) for stream in ends)
    return Throughput(
        batch=len(images),
        streams=len(engines),
        images_per_s=len(images) * done / (until - began),
        latency=Times.of([ms for stream in times_ms for ms in stream], plan.percentiles),
        modes={**modes_of(None, plan), "streams": len(engines), "in_flight": len(engines)},
        energy=meter.to_json(),
    )


def _host_times(engine: Engine, images: FloatArray, plan: BenchPlan) -> tuple[list[float], list[float], float]:
    """(when each inference began in ms, how long it took in ms, seconds of them all)."""
    starts: list[float] = []
    times_ms: list[float] = []
    infer = inference_of(engine)
    start = now = time.perf_counter()
    while now - start < plan.duration_s or len(times_ms) < plan.iterations:
        earlier = now
        infer(images)
        now = time.perf_counter()
        starts.append((earlier - start) * 1000)
        times_ms.append((now - earlier) * 1000)
    return starts, times_ms, now - start


def _host_traces(starts: Sequence[float], times_ms: Sequence[float]) -> tuple[InferenceTrace, ...]:
    """On a CPU there is nothing to copy and nothing to enqueue for later."""
    return tuple(
        InferenceTrace(0, start, start + ms, start, start, start, start + ms, start + ms, start + ms)
        for start, ms in zip(starts, times_ms, strict=True)
    )


def _steps(traced: Traced, plan: BenchPlan) -> Steps:
    def of(name: str) -> Times:
        return Times.of([getattr(trace, f"{name}_ms") for trace in traced.traces], plan.percentiles)

    return Steps(of("enqueue"), of("h2d"), of("d2h"), of("latency"))


def _steadiness_notes(batch: int, times: Times) -> tuple[str, ...]:
    if times.steady:
        return ()
    if times.uncertainty is None:
        return (f"batch {batch}: too few inferences to tell how sure the median is: give more --iterations or a longer --duration",)
    return (
        f"batch {batch} is unsteady: the median is known to {100 * times.uncertainty:.1f} % only (95 % interval "
        f"{times.median_low_ms:.3f} to {times.median_high_ms:.3f} ms); close other programs, lock the clocks, or give a longer --duration",
    )


def _compute_times(engine: Engine, images: FloatArray, plan: BenchPlan) -> list[float]:
    """GPU compute times in milliseconds until both the duration and the iterations are reached."""
    times_ms: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < plan.duration_s or len(times_ms) < plan.iterations:
        found: NDArray[np.float64] | None = engine.compute_times_ms(images, COMPUTE_CALLS)
        assert found is not None, "an engine has GPU times or has none"
        times_ms += found.tolist()
    return times_ms
