"""cuda.bindings.runtime on the made-up GPU of fake_gpu: what CUDA answers with an error is answered with that error.

Unknown handles, copies beyond an allocation, unsafe calls in a capture, a stream of another device. Handles are objects as in
cuda-bindings, error codes are its numbers. Sources: CUDA runtime API (stream synchronisation behaviour, cudaStreamBeginCapture,
cudaGraphLaunch, cudaEventElapsedTime) and the programming guide, "Stream and Event Behavior".
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

from fake_gpu import CALL_MS, FakeEvent, FakeGpu, FakeGraph, FakeStream, Handle, Work, cudaError_t
from happens_before import HOST

COPY_BYTES_PER_MS = 16 << 20


def runtime_call(method: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """A function of the runtime: it takes the CPU some time, and its error is what cudaGetLastError tells next."""

    @functools.wraps(method)
    def called(self: FakeCuda, *arguments: Any) -> tuple[Any, ...]:
        self.now_ms += CALL_MS
        answer = method(self, *[int(value) if isinstance(value, Handle) else value for value in arguments])
        answer = answer if isinstance(answer, tuple) else (answer,)
        code = cudaError_t(answer[0] or 0)
        if code:
            self.last_error = code
        return (code, *answer[1:])

    return called


class FakeCuda(FakeGpu):
    """The module. `device_error` is what it answers where a GPU is looked for."""

    def __init__(self, memory_mib: int = 8192, device_error: int = 0, devices: int = 1) -> None:
        super().__init__("cuda.bindings.runtime", memory_mib, devices)
        self.device_error = device_error
        self.last_error = cudaError_t.cudaSuccess
        self.cudaError_t = cudaError_t
        self.cudaStreamNonBlocking = 1
        self.cudaEventDefault, self.cudaEventBlockingSync, self.cudaEventDisableTiming = 0, 1, 2
        self.cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)
        self.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
        self.capability = (8, 7)
        self.integrated = True
        self.multiprocessors = 16
        self.driver_cuda = self.runtime_cuda = 12060
        self.name = b"Fake Orin\0\0"

    # device

    @runtime_call
    def cudaGetDeviceCount(self) -> Any:
        return (self.device_error, None) if self.device_error else (0, self.devices)

    @runtime_call
    def cudaGetDevice(self) -> Any:
        current = getattr(self.thread, "context", 0)
        return 0, self.contexts[current] if current else getattr(self.thread, "device", 0)

    @runtime_call
    def cudaSetDevice(self, device: int) -> Any:
        if not 0 <= device < self.devices:
            return cudaError_t.cudaErrorInvalidDevice
        self.thread.device, self.thread.context = device, self.primary_context(device)
        return 0

    @runtime_call
    def cudaGetDeviceProperties(self, device: int) -> Any:
        properties = SimpleNamespace(
            name=self.name,
            major=self.capability[0],
            minor=self.capability[1],
            multiProcessorCount=self.multiprocessors,
            totalGlobalMem=self.total,
            integrated=int(self.integrated),
        )
        return 0, properties

    @runtime_call
    def cudaDriverGetVersion(self) -> Any:
        return 0, self.driver_cuda

    @runtime_call
    def cudaRuntimeGetVersion(self) -> Any:
        return 0, self.runtime_cuda

    @runtime_call
    def cudaMemGetInfo(self) -> Any:
        assert self.context  # the first call that needs one makes it
        return 0, self.total - self.used, self.total

    def cudaGetLastError(self) -> tuple[Any, ...]:
        last, self.last_error = self.last_error, cudaError_t.cudaSuccess
        return (last,)

    # memory

    def _allocated(self, size: int, on_host: bool) -> Any:
        if self.invalidate_captures():
            return cudaError_t.cudaErrorStreamCaptureUnsupported, None
        pointer = self.allocate(size, on_host)
        return (cudaError_t.cudaErrorMemoryAllocation, None) if pointer is None else (0, pointer)

    def _freed(self, pointer: int) -> Any:
        if not pointer:
            return cudaError_t.cudaSuccess
        if self.invalidate_captures():
            return cudaError_t.cudaErrorStreamCaptureUnsupported
        return 0 if self.release(pointer) else cudaError_t.cudaErrorInvalidValue

    @runtime_call
    def cudaMalloc(self, size: int) -> Any:
        return self._allocated(size, on_host=False)

    @runtime_call
    def cudaMallocHost(self, size: int) -> Any:
        return self._allocated(size, on_host=True)

    @runtime_call
    def cudaFree(self, pointer: int) -> Any:
        return self._freed(pointer)

    @runtime_call
    def cudaFreeHost(self, pointer: int) -> Any:
        return self._freed(pointer)

    @runtime_call
    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, handle: int) -> Any:
        target, source, stream = self.allocation_of(dst, count), self.allocation_of(src, count), self.stream_of(handle)
        if target is None or source is None:
            return cudaError_t.cudaErrorInvalidValue
        if stream is None:
            return cudaError_t.cudaErrorInvalidResourceHandle
        self.log.append(f"copy {kind} {count}")
        # a captured copy reads and writes when its graph is launched, whatever stands there now
        is_recorded = stream.recorded is not None
        before = ctypes.string_at(src, count) if source.on_host and not is_recorded else None
        if target.on_host and not is_recorded:
            # from here on, until it is waited for, anything may stand there
            ctypes.memset(dst, 0xFF, count)

        def copy() -> None:
            if before is not None and ctypes.string_at(src, count) != before:
                raise self.violation("host memory was written while a copy from it was under way")
            ctypes.memmove(dst, src, count)

        return self.enqueue(stream, Work("a copy", copy, count / COPY_BYTES_PER_MS, [(src, count)], [(dst, count)]))

    # streams and events

    @runtime_call
    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        handle = next(self.handles)
        self.streams[handle] = FakeStream(f"stream {handle}", self.context, blocking=flags != self.cudaStreamNonBlocking)
        return 0, Handle(handle)

    @runtime_call
    def cudaStreamSynchronize(self, handle: int) -> Any:
        stream = self.stream_of(handle)
        if stream is None:
            return cudaError_t.cudaErrorInvalidResourceHandle
        if stream.recorded is not None:
            stream.invalidated = True
            return cudaError_t.cudaErrorStreamCaptureUnsupported
        self.log.append("synchronize")
        self.follow_host(stream)
        self.wait_on_host(self.order.now(stream.timeline), stream.free_at)
        return 0

    @runtime_call
    def cudaStreamIsCapturing(self, handle: int) -> Any:
        stream = self.stream_of(handle)
        return (400, None) if stream is None else (0, IntEnum("Status", {"no": 0, "yes": 1})(int(stream.recorded is not None)))

    @runtime_call
    def cudaStreamDestroy(self, handle: int) -> Any:
        # what is still on it is finished by CUDA; nobody can wait for it any more
        return 0 if self.streams.pop(handle, None) is not None else cudaError_t.cudaErrorInvalidResourceHandle

    @runtime_call
    def cudaEventCreate(self) -> Any:
        return self._event(timed=True)

    @runtime_call
    def cudaEventCreateWithFlags(self, flags: int) -> Any:
        return self._event(timed=not flags & self.cudaEventDisableTiming, sleeps=bool(flags & self.cudaEventBlockingSync))

    def _event(self, timed: bool, sleeps: bool = False) -> Any:
        handle = next(self.handles)
        self.events[handle] = FakeEvent(self.context, timed, sleeps=sleeps)
        return 0, Handle(handle)

    @runtime_call
    def cudaEventRecord(self, event: int, handle: int) -> Any:
        stream = self.stream_of(handle)
        if event not in self.events or stream is None or stream.context != self.events[event].context:
            return cudaError_t.cudaErrorInvalidResourceHandle
        found = self.events[event]
        found.in_capture = stream.recorded is not None
        if not found.in_capture:
            self.follow_host(stream)
            found.moment, found.ms = self.order.now(stream.timeline), max(stream.free_at, self.now_ms)
        return 0

    @runtime_call
    def cudaEventSynchronize(self, event: int) -> Any:
        found = self.events.get(event)
        if found is None:
            return cudaError_t.cudaErrorInvalidResourceHandle
        self.log.append("sleep" if found.sleeps else "spin")
        if found.moment is not None:  # one that was never recorded is complete
            self.wait_on_host(found.moment, found.ms)
        return 0

    @runtime_call
    def cudaEventElapsedTime(self, start: int, end: int) -> Any:
        first, last = self.events.get(start), self.events.get(end)
        if first is None or last is None or first.moment is None or last.moment is None or not (first.timed and last.timed):
            return cudaError_t.cudaErrorInvalidResourceHandle, None
        host = self.order.clock(HOST)
        if any(host.get(line, 0) < step for moment in (first.moment, last.moment) for line, step in moment.items()):
            return cudaError_t.cudaErrorNotReady, None
        return 0, last.ms - first.ms

    @runtime_call
    def cudaStreamWaitEvent(self, handle: int, event: int, flags: int) -> Any:
        stream, found = self.stream_of(handle), self.events.get(event)
        if stream is None or found is None:
            return cudaError_t.cudaErrorInvalidResourceHandle
        self.log.append("wait")
        if (stream.recorded is not None) != found.in_capture:
            stream.invalidated = stream.recorded is not None
            return cudaError_t.cudaErrorStreamCaptureIsolation
        if found.moment is not None and not found.in_capture:
            self.order.wait(stream.timeline, found.moment)
            stream.free_at = max(stream.free_at, found.ms)
        return 0

    @runtime_call
    def cudaEventDestroy(self, event: int) -> Any:
        # CUDA keeps it alive until what waits for it has gone on
        return 0 if self.events.pop(event, None) is not None else cudaError_t.cudaErrorInvalidResourceHandle

    # graphs

    @runtime_call
    def cudaStreamBeginCapture(self, handle: int, mode: Any) -> Any:
        stream = self.streams.get(handle)
        if stream is None or stream.recorded is not None:
            return cudaError_t.cudaErrorInvalidResourceHandle
        self.log.append("capture")
        stream.recorded, stream.invalidated = [], False
        return 0

    @runtime_call
    def cudaStreamEndCapture(self, handle: int) -> Any:
        stream = self.streams.get(handle)
        if stream is None or stream.recorded is None:
            return cudaError_t.cudaErrorInvalidResourceHandle, Handle(0)
        works, stream.recorded = stream.recorded, None
        if stream.invalidated:
            return cudaError_t.cudaErrorStreamCaptureInvalidated, Handle(0)
        return 0, self._graph(FakeGraph(works))

    def _graph(self, graph: FakeGraph) -> Handle:
        handle = next(self.handles)
        graph.timeline = f"graph {handle}"
        self.graphs[handle] = graph
        return Handle(handle)

    @runtime_call
    def cudaGraphInstantiateWithFlags(self, graph: int, flags: int) -> Any:
        if graph not in self.graphs:
            return cudaError_t.cudaErrorInvalidValue, Handle(0)
        self.log.append("instantiate")
        return 0, self._graph(FakeGraph(list(self.graphs[graph].works)))

    @runtime_call
    def cudaGraphDestroy(self, graph: int) -> Any:
        return 0 if self.graphs.pop(graph, None) is not None else cudaError_t.cudaErrorInvalidValue

    @runtime_call
    def cudaGraphExecDestroy(self, graph: int) -> Any:
        if graph not in self.graphs:
            return cudaError_t.cudaErrorInvalidValue
        moment, host = self.graphs[graph].moment, self.order.clock(HOST)
        if any(host.get(line, 0) < step for line, step in moment.items()):
            raise self.violation("a graph is destroyed while it may still run")
        del self.graphs[graph]
        return 0

    @runtime_call
    def cudaGraphLaunch(self, graph: int, handle: int) -> Any:
        stream, found = self.stream_of(handle), self.graphs.get(graph)
        if stream is None or found is None or stream.context != self.context:
            return cudaError_t.cudaErrorInvalidResourceHandle
        self.log.append("launch")
        # launches of one executable graph run one after the other, on whatever streams
        self.order.wait(stream.timeline, found.moment)
        for work in found.works:
            code = self.enqueue(stream, work)
            if code:
                return code
        found.moment = self.order.now(stream.timeline)
        return 0
