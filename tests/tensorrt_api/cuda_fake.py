"""cuda.bindings.runtime on host memory: enough of the CUDA runtime for an engine's bookkeeping, and strict about it.

Device memory is host memory that only copies and kernels of this fake touch. Work waits on its stream until that is synchronised,
as it may on a GPU, so that a forgotten synchronise or a buffer that is used too early shows; on a capturing stream it is recorded
and waits for a launch. Wrong use fails as on a GPU: unknown or freed handles, copies beyond an allocation, a synchronise inside a
capture.
"""

from __future__ import annotations

import ctypes
import itertools
import time
from collections.abc import Callable
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidResourceHandle = 400
    cudaErrorStreamCaptureUnsupported = 900


class FakeCuda(ModuleType):
    """The module, with what happened in `log` and what is alive in `memory`, `streams`, `events`, `graphs`."""

    def __init__(self, memory_mib: int = 8192, device_error: int = 0) -> None:
        super().__init__("cuda.bindings.runtime")
        self.total = memory_mib << 20
        self.device_error = device_error
        self.log: list[str] = []
        self.memory: dict[int, Any] = {}
        # handle -> (work that waits, what was recorded since a capture began or None)
        self.streams: dict[int, tuple[list[Callable[[], None]], list[Callable[[], None]] | None]] = {}
        self.events: dict[int, float] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.handles = itertools.count(1000)
        self.cudaStreamNonBlocking = 1
        self.cudaEventDisableTiming = 2
        self.cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)
        self.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
        self.capability = (8, 7)
        self.integrated = True
        self.multiprocessors = 16
        self.driver_cuda = self.runtime_cuda = 12060
        self.name = b"Fake Orin\0\0"

    @property
    def used(self) -> int:
        return sum(len(block) for block in self.memory.values())

    def enqueue(self, stream: int, work: Callable[[], None]) -> cudaError_t:
        """Let the work wait on its stream, or record it where that is capturing; on CUDA's own streams 1 and 2 it runs at once."""
        if stream in (1, 2):
            work()
            return cudaError_t.cudaSuccess
        if stream not in self.streams:
            return cudaError_t.cudaErrorInvalidResourceHandle
        waiting, recording = self.streams[stream]
        (waiting if recording is None else recording).append(work)
        return cudaError_t.cudaSuccess

    def is_capturing(self, stream: int) -> bool:
        return stream in self.streams and self.streams[stream][1] is not None

    def contains(self, pointer: int, size: int) -> bool:
        """Whether one allocation holds the whole range."""
        return any(start <= pointer and pointer + size <= start + len(block) for start, block in self.memory.items())

    # device

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return (cudaError_t(self.device_error), None) if self.device_error else (cudaError_t(0), 1)

    def cudaGetDevice(self) -> tuple[Any, ...]:
        return cudaError_t(0), 0

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        properties = SimpleNamespace(
            name=self.name,
            major=self.capability[0],
            minor=self.capability[1],
            multiProcessorCount=self.multiprocessors,
            totalGlobalMem=self.total,
            integrated=int(self.integrated),
        )
        return cudaError_t(0), properties

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return cudaError_t(0), self.driver_cuda

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:
        return cudaError_t(0), self.runtime_cuda

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return cudaError_t(0), self.total - self.used, self.total

    # memory

    def _allocate(self, size: int) -> tuple[Any, ...]:
        if self.used + size > self.total:
            return cudaError_t.cudaErrorMemoryAllocation, None
        # as the real thing: never zeroed; NaN in float32 and in float16
        block = (ctypes.c_ubyte * size).from_buffer(bytearray(b"\xff" * size))
        self.memory[ctypes.addressof(block)] = block
        return cudaError_t(0), ctypes.addressof(block)

    def _free(self, pointer: int) -> tuple[Any, ...]:
        return (cudaError_t(0) if self.memory.pop(pointer, None) is not None else cudaError_t.cudaErrorInvalidValue,)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._allocate(size)

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return self._allocate(size)

    def cudaFree(self, pointer: int) -> tuple[Any, ...]:
        return self._free(pointer)

    def cudaFreeHost(self, pointer: int) -> tuple[Any, ...]:
        return self._free(pointer)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: int) -> tuple[Any, ...]:
        if not (self.contains(dst, count) and self.contains(src, count)):
            return (cudaError_t.cudaErrorInvalidValue,)
        self.log.append(f"copy {kind} {count}")

        def copy() -> None:
            assert self.contains(dst, count), "a copy into memory that was freed meanwhile"
            assert self.contains(src, count), "a copy from memory that was freed meanwhile"
            ctypes.memmove(dst, src, count)

        return (self.enqueue(stream, copy),)

    # streams and events

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        handle = next(self.handles)
        self.streams[handle] = ([], None)
        return cudaError_t(0), handle

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        if stream not in self.streams:
            return (cudaError_t.cudaErrorInvalidResourceHandle,)
        if self.is_capturing(stream):
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        self.log.append("synchronize")
        waiting = self.streams[stream][0]
        while waiting:
            waiting.pop(0)()
        return (cudaError_t(0),)

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        return (cudaError_t(0) if self.streams.pop(stream, None) is not None else cudaError_t.cudaErrorInvalidResourceHandle,)

    def cudaEventCreate(self) -> tuple[Any, ...]:
        return self.cudaEventCreateWithFlags(0)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        handle = next(self.handles)
        self.events[handle] = float("nan")  # has not fired
        return cudaError_t(0), handle

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Any, ...]:
        if event not in self.events:
            return (cudaError_t.cudaErrorInvalidResourceHandle,)
        return (self.enqueue(stream, lambda: self.events.__setitem__(event, time.perf_counter())),)

    def cudaEventElapsedTime(self, start: int, end: int) -> tuple[Any, ...]:
        return cudaError_t(0), (self.events[end] - self.events[start]) * 1e3

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[Any, ...]:
        self.log.append("wait")
        return (cudaError_t(0) if event in self.events and stream in self.streams else cudaError_t.cudaErrorInvalidResourceHandle,)

    def cudaEventDestroy(self, event: int) -> tuple[Any, ...]:
        return (cudaError_t(0) if self.events.pop(event, None) is not None else cudaError_t.cudaErrorInvalidResourceHandle,)

    # graphs

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any, ...]:
        self.log.append("capture")
        self.streams[stream] = (self.streams[stream][0], [])
        return (cudaError_t(0),)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        waiting, recorded = self.streams[stream]
        self.streams[stream] = (waiting, None)
        handle = next(self.handles)
        self.graphs[handle] = recorded or []
        return cudaError_t(0), handle

    def cudaGraphInstantiateWithFlags(self, graph: int, flags: int) -> tuple[Any, ...]:
        handle = next(self.handles)
        self.graphs[handle] = list(self.graphs[graph])
        self.log.append("instantiate")
        return cudaError_t(0), handle

    def cudaGraphDestroy(self, graph: int) -> tuple[Any, ...]:
        return (cudaError_t(0) if self.graphs.pop(graph, None) is not None else cudaError_t.cudaErrorInvalidResourceHandle,)

    def cudaGraphExecDestroy(self, graph: int) -> tuple[Any, ...]:
        return self.cudaGraphDestroy(graph)

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[Any, ...]:
        if graph not in self.graphs:
            return (cudaError_t.cudaErrorInvalidResourceHandle,)
        self.log.append("launch")
        for work in self.graphs[graph]:
            self.enqueue(stream, work)
        return (cudaError_t(0),)
