"""What some engines tell beyond results: when each step of each inference began and ended, and the times of their layers.

An Engine that has `trace` is a TracedEngine, one that has `infer_many` a StreamingEngine, one with `layer_runs` a ProfiledEngine, one
with `inspector_json` an InspectableEngine. The benchmark asks with isinstance, so that a backend without them is no worse a backend.
Source of the steps: trtexec's InferenceTrace (sampleReporting.h of NVIDIA/TensorRT).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from gmf_edge.engines.protocol import FloatArray


@dataclass(frozen=True)
class InferenceTrace:
    """When the steps of one inference began and ended, in milliseconds since the measurement began.

    Attributes:
        stream: number of the stream that it ran on.
        start_enqueue_ms, end_enqueue_ms: the CPU's calls, by the host's clock.
        start_h2d_ms, end_h2d_ms: the images' way to the GPU, by the GPU's clock as all that follow; equal where they stay there.
        start_compute_ms, end_compute_ms: the engine.
        start_d2h_ms, end_d2h_ms: the logits' way back.
    """

    stream: int
    start_enqueue_ms: float
    end_enqueue_ms: float
    start_h2d_ms: float
    end_h2d_ms: float
    start_compute_ms: float
    end_compute_ms: float
    start_d2h_ms: float
    end_d2h_ms: float

    @property
    def enqueue_ms(self) -> float:
        """CPU time of the calls."""
        return self.end_enqueue_ms - self.start_enqueue_ms

    @property
    def h2d_ms(self) -> float:
        """Host to device."""
        return self.end_h2d_ms - self.start_h2d_ms

    @property
    def compute_ms(self) -> float:
        """GPU compute time."""
        return self.end_compute_ms - self.start_compute_ms

    @property
    def d2h_ms(self) -> float:
        """Device to host."""
        return self.end_d2h_ms - self.start_d2h_ms

    @property
    def latency_ms(self) -> float:
        """Host to device, compute, device to host, without what lies between them: what trtexec calls latency."""
        return self.h2d_ms + self.compute_ms + self.d2h_ms


@dataclass(frozen=True)
class TracePlan:
    """How inferences are traced.

    Attributes:
        warmup_s: untraced inferences before.
        duration_s, iterations: both are reached.
        transfers: whether images and logits are copied with every inference.
        spin_wait: whether the CPU spins on the GPU's events, instead of sleeping until they fire.
        streams: how many of the engine's streams take part.
    """

    warmup_s: float
    duration_s: float
    iterations: int
    transfers: bool = True
    spin_wait: bool = False
    streams: int = 1


@dataclass(frozen=True)
class Traced:
    """What `trace` found.

    Attributes:
        traces: in the order in which the inferences were waited for.
        wall_s: from the first call to the last result.
        cuda_graph: whether they were replayed from CUDA graphs.
        in_flight: inferences that were enqueued at a time, over all streams.
    """

    traces: tuple[InferenceTrace, ...]
    wall_s: float
    cuda_graph: bool
    in_flight: int


@runtime_checkable
class StreamingEngine(Protocol):
    """An engine that keeps several batches in flight by itself."""

    def infer_many(self, batches: Iterable[FloatArray]) -> Iterator[FloatArray]:
        """The logits of each batch in order, with as many batches in flight as the engine has streams.

        Raises:
            EngineError: as infer.
        """


@runtime_checkable
class TracedEngine(Protocol):
    """An engine on a GPU that can be traced."""

    def trace(self, images: FloatArray, plan: TracePlan) -> Traced:
        """Inferences of these images [B, 3, H, W], back to back, each with its steps.

        Raises:
            EngineError: as infer, or the engine was opened with fewer streams than the plan's.
        """


@dataclass(frozen=True)
class LayerRuns:
    """The times of one layer in milliseconds, a profiled inference each."""

    name: str
    times_ms: tuple[float, ...]


@runtime_checkable
class ProfiledEngine(Protocol):
    """An engine whose layers can be timed."""

    def layer_runs(self, runs: int) -> Sequence[LayerRuns]:
        """Each layer's times in `runs` inferences at the opt batch size, in execution order; several layers may have one name.

        Raises:
            EngineError: closed.
        """


@runtime_checkable
class InspectableEngine(Protocol):
    """An engine with TensorRT's engine inspector."""

    def inspector_json(self) -> str:
        """The inspector's answer for the opt batch size.

        Raises:
            EngineError: closed.
        """
