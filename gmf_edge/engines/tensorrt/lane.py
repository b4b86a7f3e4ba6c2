"""One inference in flight: a stream with its buffers, execution contexts and CUDA graphs.

Everything that a lane does is on its own stream, so its contexts, which share one block of memory, and its buffers need no other order;
work on a caller's stream is ordered with it by events, before and after (TensorRTEngine.infer_device). Graphs hold the compute only.

Source of the capture's rules: NvInferRuntime.h (8.6: enqueueV2's note; the first enqueue after setInputShape allocates) and trtexec.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from gmf_edge.engines.protocol import FloatArray
from gmf_edge.engines.tensorrt.contexts import Contexts
from gmf_edge.engines.tensorrt.cuda import DeviceBuffer, Event, Graph, PinnedArray, Stream
from gmf_edge.engines.tensorrt.log import BuildLog
from gmf_edge.engines.tensorrt.tensors import EngineIO
from gmf_edge.errors import EngineError
from gmf_edge.spec import IMAGES

if TYPE_CHECKING:
    import tensorrt as trt

# captured batch sizes of infer, and captured arrays of infer_device: each costs a context and its graph
MOST_GRAPHS = 8
# place of the images' address in a graph's key
IMAGES_OF_KEY = 3
# inferences between two waits of the CPU while they are timed: the queue of launches must not fill
BURST = 64


AnyBuffer = TypeVar("AnyBuffer", PinnedArray, DeviceBuffer)


@dataclass(frozen=True)
class StepTimes:
    """Times of one inference in milliseconds: of the calls on the CPU, and of each step on the GPU (by CUDA events)."""

    enqueue_ms: float
    h2d_ms: float
    compute_ms: float
    d2h_ms: float

    @property
    def latency_ms(self) -> float:
        """Host to device, compute, device to host: what trtexec calls latency."""
        return self.h2d_ms + self.compute_ms + self.d2h_ms


@dataclass
class InFlight:
    """A batch that was started; `outputs`, by name, are there once they were collected."""

    batch: int
    outputs: dict[str, FloatArray] | None = None


@dataclass(frozen=True)
class CapturedRun:
    """A graph, and the context that it was captured from, which must outlive it unchanged."""

    context: trt.IExecutionContext
    graph: Graph


class Lane:
    """See the head of this file.

    Attributes:
        size: (H, W) of the images that lie in the lane's own buffers.
        notes: what the user should know, shared by the lanes of an engine.
    """

    def __init__(self, engine: trt.ICudaEngine, log: BuildLog, io: EngineIO, use_graphs: bool, notes: list[str]) -> None:
        self.log = log
        self.io = io
        self.use_graphs = use_graphs
        self.notes = notes
        self.size = io.image_size
        # (batch, H, W, address of the images, of each output)
        self.graphs: dict[tuple[int, ...], CapturedRun] = {}
        self._seen: deque[tuple[int, ...]] = deque(maxlen=2 * MOST_GRAPHS)
        self._in_flight: InFlight | None = None
        self._events: list[Event] = []
        # released in reverse: graphs, then contexts, then the memory that they use, and the stream last
        with ExitStack() as resources:
            self.stream = Stream()
            resources.callback(self.stream.close)

            def owned(buffer: AnyBuffer) -> AnyBuffer:
                resources.callback(buffer.close)
                return buffer

            most, largest = io.profile.max, io.largest_size
            self.host_images = owned(PinnedArray((most * 3 * math.prod(largest),), io.input_dtype))
            self.host_outputs = [owned(PinnedArray((most * math.prod(out.shape(largest)),), out.dtype)) for out in io.outputs]
            self.device_images = owned(DeviceBuffer(most * io.image_bytes(largest)))
            self.device_outputs = [owned(DeviceBuffer(most * out.bytes_of(largest))) for out in io.outputs]
            # what infer_device hands out: infer must not write there while the caller reads
            self.device_results = [owned(DeviceBuffer(most * out.bytes_of(largest))) for out in io.outputs]
            self.contexts = Contexts(engine, log, self.stream)
            resources.callback(self.contexts.close)
            resources.callback(self._release_events)
            self.context = self.contexts.new()
            resources.callback(self._release_contexts)
            self._resources = resources.pop_all()

    @property
    def buffer_bytes(self) -> int:
        """GPU memory of the buffers."""
        return self.device_images.size + sum(buffer.size for buffer in (*self.device_outputs, *self.device_results))

    @property
    def output_pointers(self) -> tuple[int, ...]:
        """Device addresses of the lane's own outputs, in the order of EngineIO.outputs."""
        return tuple(buffer.pointer for buffer in self.device_outputs)

    # enqueueing

    def enqueue(
        self,
        context: trt.IExecutionContext,
        batch: int,
        size: tuple[int, int],
        images: int,
        outputs: Sequence[int],
        stream: int,
    ) -> None:
        """Enqueue one inference of images of (H, W) = size on device addresses, of the outputs in the order of EngineIO.outputs.

        Raises:
            EngineError: TensorRT refuses it.
        """
        done = context.set_input_shape(IMAGES, (batch, 3, *size)) and context.set_tensor_address(IMAGES, images)
        for output, pointer in zip(self.io.outputs, outputs, strict=True):
            done = done and context.set_tensor_address(output.name, pointer)
        if not done:
            raise EngineError(f"TensorRT does not take a batch of {batch}: {self.log.last_errors}", "see TensorRT's messages")
        self._execute(context, batch, stream)

    def _execute(self, context: trt.IExecutionContext, batch: int, stream: int) -> None:
        if not context.execute_async_v3(stream):
            raise EngineError(f"TensorRT could not run a batch of {batch}: {self.log.last_errors}", "see TensorRT's messages")

    def run(self, batch: int, size: tuple[int, int], images: int, outputs: Sequence[int]) -> None:
        """As enqueue, on the lane's stream, from its graph where there is one; the graph is captured on the way.

        Raises:
            EngineError: TensorRT refuses it.
        """
        key = (batch, *size, images, *outputs)
        if key in self.graphs:
            self.graphs[key].graph.launch(self.stream)
        elif not (self._is_worth_a_graph(key) and self._run_and_capture(key)):
            self.enqueue(self.context, batch, size, images, outputs, self.stream.handle)

    def _is_worth_a_graph(self, key: tuple[int, ...]) -> bool:
        if not self.use_graphs:
            return False
        own = self.device_images.pointer
        is_own = key[IMAGES_OF_KEY] == own
        if not is_own and key not in self._seen:
            # arrays that come once are not worth what a capture costs
            self._seen.append(key)
            return False
        if sum((captured[IMAGES_OF_KEY] == own) == is_own for captured in self.graphs) < MOST_GRAPHS:
            return True
        many = ("batch sizes" if self.io.sizes is None else "shapes") if is_own else "arrays of infer_device"
        self._note(f"the first {MOST_GRAPHS} {many} are replayed from CUDA graphs, the layers of others are launched one by one")
        return False

    def _run_and_capture(self, key: tuple[int, ...]) -> bool:
        """Run it in a context of its own, then capture that; False where it could not be done, and must be run in another way."""
        batch, height, width, images, *outputs = key
        try:
            context = self.contexts.new()
            # also the first run of that shape, which loads kernels and allocates: neither may happen inside a capture
            self.enqueue(context, batch, (height, width), images, outputs, self.stream.handle)
            self.stream.synchronize()
            # shape and addresses are set: only the launches are recorded
            graph = Graph.capture(self.stream, lambda: self._execute(context, batch, self.stream.handle))
        except EngineError as error:
            self.use_graphs = False
            self._note(f"no CUDA graph could be captured, the layers are launched one by one: {error.problem}")
            with suppress(EngineError):
                # the context must not go while something of it runs; what is wrong here shows again in the run that follows
                self.stream.synchronize()
            return False
        self.graphs[key] = CapturedRun(context, graph)
        return True

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    # NumPy in, NumPy out

    def start(self, images: FloatArray) -> InFlight:
        """Enqueue copy, compute and copy back.

        Raises:
            EngineError: CUDA or TensorRT refuses it.
        """
        with self.settled():
            batch = self._copy_in_new(images)
            self.compute(batch)
            self.copy_out(batch)
            self._in_flight = InFlight(batch)
        return self._in_flight

    def finish(self, started: InFlight) -> dict[str, FloatArray]:
        """The outputs by name of a batch that was started on this lane, waited for where they are not there yet."""
        if started.outputs is None:
            self.collect()
        assert started.outputs is not None
        return started.outputs

    def collect(self) -> None:
        """Wait for the batch in flight, if there is one, and copy its outputs out of the pinned buffers, which are then free."""
        if self._in_flight is not None:
            self.stream.synchronize()
            started, self._in_flight = self._in_flight, None
            shapes = [(started.batch, *output.shape(self.size)) for output in self.io.outputs]
            started.outputs = {
                output.name: host.array[: math.prod(shape)].reshape(shape).astype(np.float32)
                for output, host, shape in zip(self.io.outputs, self.host_outputs, shapes, strict=True)
            }

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Where something fails or is interrupted halfway, wait: the next call may write the pinned buffers at once."""
        try:
            yield
        except BaseException:
            with suppress(EngineError):
                self.stream.synchronize()
            raise

    def _copy_in_new(self, images: FloatArray) -> int:
        """Put images into the pinned buffer, in the engine's input type, and enqueue their copy; their number."""
        self.collect()
        self.size = (images.shape[2], images.shape[3])
        np.copyto(self.host_images.array[: images.size].reshape(images.shape), images, casting="same_kind")
        self.copy_in(len(images))
        return len(images)

    def copy_in(self, batch: int) -> None:
        """Enqueue the copy of the pinned buffer's first images to the GPU."""
        self.stream.copy_to_device(self.device_images.pointer, self.host_images.pointer, batch * self.io.image_bytes(self.size))

    def compute(self, batch: int) -> None:
        """Enqueue the engine on the lane's own buffers."""
        self.run(batch, self.size, self.device_images.pointer, self.output_pointers)

    def copy_out(self, batch: int) -> None:
        """Enqueue the copy of the outputs into the pinned buffers."""
        for output, host, device in zip(self.io.outputs, self.host_outputs, self.device_outputs, strict=True):
            self.stream.copy_to_host(host.pointer, device.pointer, batch * output.bytes_of(self.size))

    # times

    def timed(self, images: FloatArray, transfers: bool) -> StepTimes:
        """The steps of one inference, behind another one that keeps the GPU busy while they are enqueued."""
        with self.settled():
            batch = self._copy_in_new(images)
            self._capture_first(batch)
            steps: list[Callable[[], None]] = [lambda: None, lambda: self.compute(batch), lambda: None]
            if transfers:
                steps[0], steps[2] = lambda: self.copy_in(batch), lambda: self.copy_out(batch)
            enqueue_ms, (h2d, compute, d2h) = self._gpu_times(steps, lead_in=steps)
        return StepTimes(enqueue_ms, h2d, compute, d2h)

    def compute_times(self, images: FloatArray, count: int) -> NDArray[np.float64]:
        """GPU time in ms of each of `count` inferences, enqueued one after the other on the same images."""
        times: list[float] = []
        with self.settled():
            batch = self._copy_in_new(images)
            self._capture_first(batch)
            while len(times) < count:
                steps: list[Callable[[], None]] = [lambda: self.compute(batch)] * min(BURST, count - len(times))
                times += self._gpu_times(steps, lead_in=steps[:1])[1]
        return np.array(times, np.float64)

    def prepare(self, images: FloatArray) -> None:
        """Images of a batch onto the GPU, and one inference that loads kernels and captures the graph, waited for."""
        self._capture_first(self._copy_in_new(images))

    def _capture_first(self, batch: int) -> None:
        """Loading kernels and capturing are no part of an inference's time."""
        self.compute(batch)
        self.stream.synchronize()

    def _gpu_times(self, steps: Sequence[Callable[[], None]], lead_in: Sequence[Callable[[], None]]) -> tuple[float, list[float]]:
        """(CPU time of enqueueing the steps, GPU time of each), in milliseconds.

        An event's time is when the GPU reaches it. Behind an idle GPU that is at once, and the time up to the next event would hold
        Python's way to the next call; behind the lead-in the GPU finds the steps already enqueued. (Where launching layer by layer
        takes the CPU longer than the layers take the GPU, the GPU waits inside the steps all the same.)
        """
        while len(self._events) <= len(steps):
            self._events.append(Event())
        for step in lead_in:
            step()
        began = time.perf_counter()
        self._events[0].record(self.stream)
        for step, event in zip(steps, self._events[1:], strict=False):
            step()
            event.record(self.stream)
        enqueue_ms = (time.perf_counter() - began) * 1e3
        self.stream.synchronize()
        between = zip(self._events, self._events[1 : len(steps) + 1], strict=False)
        return enqueue_ms, [later.ms_since(earlier) for earlier, later in between]

    # the end

    def forget_graphs(self) -> None:
        """Release the captured graphs, with their contexts; they are captured again when they are needed."""
        try:
            self.stream.synchronize()
        finally:
            for captured in self.graphs.values():
                captured.graph.close()
            self.graphs.clear()

    def close(self) -> None:
        """Wait for everything in flight, then release it; contexts after the graphs that were captured from them."""
        with self._resources:
            self.collect()

    def _release_contexts(self) -> None:
        try:
            self.forget_graphs()
        finally:
            del self.context

    def _release_events(self) -> None:
        for event in self._events:
            event.close()
        self._events.clear()
