"""A made-up GPU on host memory, that does its work as late as it may, and fails wherever CUDA leaves things undefined.

Work waits on its stream until somebody waits for it. What fails always: accesses that are not ordered (happens_before), memory, graphs
and contexts that are gone or freed while work still uses them, memory of another device or context, host buffers that change under a
copy. Such a `Violation` is raised and kept in `violations`, so that no handler hides it.

Time is made up too: a call costs the CPU CALL_MS, work starts when its stream and its launch are there, and an event holds the time
at which the GPU reaches it, so that a gap between two calls shows in the times of an idle GPU and not in those of a busy one.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from types import ModuleType
from typing import Any

from happens_before import HOST, Access, Clock, Order, Violation

CALL_MS = 0.005
ALIGNMENT = 256
LEGACY, PER_THREAD = 1, 2


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorDeviceUninitialized = 201
    cudaErrorInvalidResourceHandle = 400
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorSystemNotReady = 802
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorStreamCaptureIsolation = 905
    cudaErrorStreamCaptureImplicit = 906
    cudaErrorUnknown = 999


class Handle:
    """cudaStream_t, cudaEvent_t, CUcontext and the like: it can be made an int, and is none."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __int__(self) -> int:
        return self.value


@dataclass
class Allocation:
    """A block of memory: whose it is, and its bytes."""

    place: int
    context: int
    device: int
    on_host: bool
    block: Any


@dataclass
class Work:
    """Something that a stream does: what it computes, which ranges it reads and writes, what it has for itself meanwhile."""

    name: str
    run: Callable[[], None]
    ms: float
    reads: Sequence[tuple[int, int]] = ()
    writes: Sequence[tuple[int, int]] = ()
    uses_alone: Sequence[int] = ()
    check: Callable[[], None] = lambda: None


@dataclass
class FakeStream:
    """A stream: its context, whether it is ordered with the legacy stream, when the GPU is through with it, what is recorded."""

    timeline: str
    context: int
    blocking: bool
    free_at: float = 0.0
    recorded: list[Work] | None = None
    invalidated: bool = False


@dataclass
class FakeEvent:
    """A moment on a stream, and the made-up time of it in ms; whether the CPU sleeps while it waits for it."""

    context: int
    timed: bool
    sleeps: bool = False
    moment: Clock | None = None
    ms: float = 0.0
    in_capture: bool = False


@dataclass
class FakeGraph:
    """Recorded work; `timeline` of its launches, which CUDA puts one after the other."""

    works: list[Work]
    timeline: str = ""
    moment: Clock = field(default_factory=dict)


class FakeGpu(ModuleType):
    """What happened is in `log`, what is alive in `memory`, `streams`, `events`, `graphs`.

    Args:
        memory_mib: of the GPU.
        devices: how many there are; they share the memory.
    """

    def __init__(self, name: str, memory_mib: int, devices: int) -> None:
        super().__init__(name)
        self.total = memory_mib << 20
        self.devices = devices
        self.log: list[str] = []
        self.violations: list[str] = []
        self.order = Order()
        self.now_ms = 0.0
        self.memory: dict[int, Any] = {}
        self.allocations: dict[int, Allocation] = {}
        # (stream, step, work, the memory that it uses)
        self.pending: list[tuple[str, int, Work, list[Allocation]]] = []
        self.streams: dict[int, FakeStream] = {}
        self.default_streams: dict[tuple[int, int], FakeStream] = {}
        self.events: dict[int, FakeEvent] = {}
        self.graphs: dict[int, FakeGraph] = {}
        self.handles = itertools.count(1000)
        self.contexts: dict[int, int] = {}
        self.primary: dict[int, int] = {}
        self.thread = threading.local()

    # what the tests and the stand-in TensorRT ask

    @property
    def used(self) -> int:
        """Bytes that are allocated."""
        return sum(len(block) for block in self.memory.values())

    @property
    def context(self) -> int:
        """This thread's current context; the device's primary one where it has none, as in any call of the runtime."""
        current = getattr(self.thread, "context", 0)
        if not current:
            current = self.thread.context = self.primary_context(getattr(self.thread, "device", 0))
        return current

    def primary_context(self, device: int) -> int:
        """The context that the runtime makes for a device."""
        if device not in self.primary:
            self.primary[device] = self.new_context(device)
        return self.primary[device]

    def new_context(self, device: int) -> int:
        """Another context of a device, such as pycuda.autoinit makes."""
        handle = next(self.handles)
        self.contexts[handle] = device
        return handle

    def violation(self, text: str) -> Violation:
        """Keep it, and give it to raise."""
        self.violations.append(text)
        return Violation(text)

    def allocation_of(self, pointer: int, size: int = 1) -> Allocation | None:
        """The allocation that holds the whole range."""
        for start, allocation in self.allocations.items():
            if start <= pointer and pointer + size <= start + len(allocation.block):
                return allocation
        return None

    def contains(self, pointer: int, size: int) -> bool:
        """Whether one allocation holds the whole range."""
        return self.allocation_of(pointer, size) is not None

    def stream_of(self, handle: int) -> FakeStream | None:
        """A stream by its handle; 0 and 1 are the legacy default stream, 2 the thread's."""
        if handle in (0, LEGACY, PER_THREAD):
            kind = PER_THREAD if handle == PER_THREAD else LEGACY
            name = "the legacy stream" if kind == LEGACY else "the per-thread stream"
            return self.default_streams.setdefault((self.context, kind), FakeStream(name, self.context, True))
        return self.streams.get(handle)

    def is_capturing(self, handle: int) -> bool:
        """Whether the stream records."""
        stream = self.stream_of(handle)
        return stream is not None and stream.recorded is not None

    def spend(self, ms: float) -> None:
        """CPU time that something takes beside its calls."""
        self.now_ms += ms

    def kernel(self, handle: int, work: Work) -> cudaError_t:
        """Launch a kernel: on a stream of the current context, on memory that it can reach."""
        stream = self.stream_of(handle)
        if stream is None or stream.context != self.context:
            return cudaError_t.cudaErrorInvalidResourceHandle
        return self.enqueue(stream, work)

    def enqueue(self, stream: FakeStream, work: Work) -> cudaError_t:
        """Let the work wait on its stream, or record it where that is capturing."""
        if stream.recorded is not None:
            if stream.invalidated:
                return cudaError_t.cudaErrorStreamCaptureInvalidated
            stream.recorded.append(work)
            return cudaError_t.cudaSuccess
        if stream.timeline == "the legacy stream" and any(
            other.recorded is not None and other.blocking for other in self.streams.values()
        ):
            return cudaError_t.cudaErrorStreamCaptureImplicit
        self.schedule(stream, work)
        return cudaError_t.cudaSuccess

    def schedule(self, stream: FakeStream, work: Work) -> None:
        """Put the work behind what the stream and the host have seen; a Violation where something else may touch its memory."""
        self.follow_host(stream)
        work.check()
        step = self.order.step(stream.timeline)
        held = []
        for ranges, writes in ((work.reads, False), (work.writes, True)):
            for pointer, size in ranges:
                allocation = self.allocation_of(pointer, size)
                if allocation is None:
                    raise self.violation(
                        f"illegal access: {work.name} reaches {size} bytes at {pointer:#x}, which is not allocated"
                    )
                if not allocation.on_host and allocation.context != stream.context:
                    raise self.violation(f"illegal access: {work.name} reaches memory of another device or context")
                held.append(allocation)
                access = Access(stream.timeline, step, work.name, pointer, pointer + size, writes)
                self._touch(allocation.place, access)
        for thing in work.uses_alone:
            self._touch(thing, Access(stream.timeline, step, work.name, 0, 1, True))
        stream.free_at = max(stream.free_at, self.now_ms) + work.ms
        self.pending.append((stream.timeline, step, work, held))

    def follow_host(self, stream: FakeStream) -> None:
        """Work that is enqueued now is behind what the host has waited for, and the legacy stream and blocking ones wait in turn."""
        self.order.wait(stream.timeline, self.order.now(HOST))
        legacy = self.default_streams.get((stream.context, LEGACY))
        if stream is legacy:
            blocking = [other for other in self.streams.values() if other.blocking and other.context == stream.context]
            for other in [*blocking, *self.default_streams.values()]:
                self.order.wait(stream.timeline, self.order.now(other.timeline))
                stream.free_at = max(stream.free_at, other.free_at)
        elif legacy is not None and stream.blocking:
            self.order.wait(stream.timeline, self.order.now(legacy.timeline))
            stream.free_at = max(stream.free_at, legacy.free_at)

    def wait_on_host(self, moment: Clock, ms: float) -> None:
        """The host waits: all work up to that moment is done, in the order in which it was enqueued."""
        self.order.wait(HOST, moment)
        self.now_ms = max(self.now_ms, ms)
        done = [entry for entry in self.pending if moment.get(entry[0], 0) >= entry[1]]
        self.pending = [entry for entry in self.pending if moment.get(entry[0], 0) < entry[1]]
        for _, _, work, held in done:
            for allocation in held:
                if self.allocations.get(ctypes.addressof(allocation.block)) is not allocation:
                    raise self.violation(f"{work.name} uses memory that was freed meanwhile")
            work.run()

    def _touch(self, place: int, access: Access) -> None:
        try:
            self.order.touch(place, access)
        except Violation as race:
            raise self.violation(str(race)) from None

    def must_be_idle(self, place: int, what: str) -> None:
        """A Violation where work that the host has not waited for may still use the place."""
        user = self.order.in_use(place, self.order.now(HOST))
        if user is not None:
            raise self.violation(f"{what} while {user.what} may still run on {user.timeline}")

    def invalidate_captures(self) -> bool:
        """A call that a capture does not allow: this thread's captures are spoilt."""
        capturing = [stream for stream in self.streams.values() if stream.recorded is not None]
        for stream in capturing:
            stream.invalidated = True
        return bool(capturing)

    def allocate(self, size: int, on_host: bool = False) -> int | None:
        """A block of the current context, None where there is no more; never zeroed: NaN in float32 and in float16."""
        if self.used + size > self.total:
            return None
        raw = bytearray(b"\xff" * (size + ALIGNMENT))
        shift = -ctypes.addressof((ctypes.c_ubyte * len(raw)).from_buffer(raw)) % ALIGNMENT
        block = (ctypes.c_ubyte * size).from_buffer(raw, shift)
        pointer = ctypes.addressof(block)
        self.memory[pointer] = block
        context = self.context
        self.allocations[pointer] = Allocation(next(self.handles), context, self.contexts[context], on_host, block)
        return pointer

    def release(self, pointer: int, what: str = "memory is freed") -> bool:
        """Give a block back: nothing may use it any more."""
        if pointer not in self.allocations:
            return False
        self.must_be_idle(self.allocations[pointer].place, what)
        del self.memory[pointer], self.allocations[pointer]
        return True
