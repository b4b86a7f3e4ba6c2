"""Inferences back to back, each with the times of its steps: trtexec's loop.

On every stream a second inference is enqueued before the first is waited for, so that the GPU never waits for Python: an event's time is
when the GPU reaches it, and behind an idle GPU the next step's time would hold Python's way to its call. Unlike trtexec, which copies on
streams of their own, a stream here runs its copies in order with its compute; several streams overlap one's copies with another's compute.

Source: sampleInference.cpp of NVIDIA/TensorRT (Iteration, inferenceLoop); events that are waited for without spinning are made with
cudaEventBlockingSync, as there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from gmf_edge.engines.protocol import FloatArray
from gmf_edge.engines.tensorrt.cuda import Event
from gmf_edge.engines.tensorrt.lane import Lane
from gmf_edge.engines.trace import InferenceTrace, Traced, TracePlan

# enqueued inferences of a stream: one that runs, one behind it
DEPTH = 2
# copy in, compute, copy out: where the first begins and where each ends
STEP_EVENTS = 4


@dataclass
class _Enqueued:
    """An inference that was enqueued: its events, and when the CPU's calls began and ended (seconds by the host's clock)."""

    stream: int
    events: Sequence[Event]
    began_s: float
    ended_s: float


def trace_lanes(lanes: Sequence[Lane], images: FloatArray, plan: TracePlan) -> Traced:
    """Trace inferences of these images on all the lanes, in the CUDA context that is current.

    Raises:
        EngineError: CUDA or TensorRT refuses something.
    """
    with ExitStack() as stack:
        for lane in lanes:
            stack.enter_context(lane.settled())
            lane.prepare(images)
        loop = _Loop(lanes, len(images), plan, stack)
        loop.run(plan.warmup_s, 1)
        traces, wall_s = loop.run(plan.duration_s, plan.iterations)
    return Traced(tuple(traces), wall_s, all(lane.use_graphs for lane in lanes), DEPTH * len(lanes))


class _Loop:
    def __init__(self, lanes: Sequence[Lane], batch: int, plan: TracePlan, stack: ExitStack) -> None:
        self.lanes, self.batch, self.plan = lanes, batch, plan

        def event() -> Event:
            made = Event(blocking=not plan.spin_wait)
            stack.callback(made.close)
            return made

        self.origin = event()
        # per lane, used in turn: events may be recorded again once they were waited for and read
        self.rings = [deque([event() for _ in range(STEP_EVENTS)] for _ in range(DEPTH)) for _ in lanes]

    def run(self, duration_s: float, iterations: int) -> tuple[list[InferenceTrace], float]:
        """(traces, seconds that they took) once both are reached."""
        self.origin.record(self.lanes[0].stream)
        self.origin.synchronize()
        began_s = time.perf_counter()
        pending: list[deque[_Enqueued]] = [deque() for _ in self.lanes]
        traces: list[InferenceTrace] = []
        started = 0
        while time.perf_counter() - began_s < duration_s or started < iterations:
            for number, (lane, waiting) in enumerate(zip(self.lanes, pending, strict=True)):
                if len(waiting) == DEPTH:
                    traces.append(self._finished(waiting.popleft(), began_s))
                waiting.append(self._enqueue(number, lane))
                started += 1
        for waiting in pending:
            traces += [self._finished(enqueued, began_s) for enqueued in waiting]
        return traces, time.perf_counter() - began_s

    def _enqueue(self, number: int, lane: Lane) -> _Enqueued:
        events = self.rings[number][0]
        self.rings[number].rotate(-1)
        began_s = time.perf_counter()
        events[0].record(lane.stream)
        if self.plan.transfers:
            lane.copy_in(self.batch)
        events[1].record(lane.stream)
        lane.compute(self.batch)
        events[2].record(lane.stream)
        if self.plan.transfers:
            lane.copy_out(self.batch)
        events[3].record(lane.stream)
        return _Enqueued(number, events, began_s, time.perf_counter())

    def _finished(self, enqueued: _Enqueued, began_s: float) -> InferenceTrace:
        enqueued.events[-1].synchronize()
        start, copied_in, computed, copied_out = (event.ms_since(self.origin) for event in enqueued.events)
        if not self.plan.transfers:
            # two events behind each other have a little time between them, which is no transfer
            start, copied_out = copied_in, computed
        return InferenceTrace(
            stream=enqueued.stream,
            start_enqueue_ms=(enqueued.began_s - began_s) * 1e3,
            end_enqueue_ms=(enqueued.ended_s - began_s) * 1e3,
            start_h2d_ms=start,
            end_h2d_ms=copied_in,
            start_compute_ms=copied_in,
            end_compute_ms=computed,
            start_d2h_ms=computed,
            end_d2h_ms=copied_out,
        )
