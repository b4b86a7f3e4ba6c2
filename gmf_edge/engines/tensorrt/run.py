"""An opened TensorRT engine: images in, logits out.

    with open_engine(content, ...) as engine:
        logits = engine.infer(images)                 NumPy, through pinned memory
        logits = engine.infer_device(gpu_images)      PyTorch, CuPy, PyCUDA or Numba, without a copy
        for logits in engine.infer_many(batches):     several batches in flight, one per stream

Each lane has a stream, page-locked host buffers, device buffers for the largest batch, and per batch size a CUDA graph with an
execution context of its own: a context must not change under a graph that was captured from it. The graphs hold the compute only.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gmf_edge.engines.protocol import EngineFacts, FloatArray
from gmf_edge.engines.tensorrt.arrays import DeviceView, device_view
from gmf_edge.engines.tensorrt.cuda import DeviceBuffer, Event, Graph, PinnedArray, Stream
from gmf_edge.engines.tensorrt.inspect import LayerTimes
from gmf_edge.engines.tensorrt.log import BuildLog
from gmf_edge.engines.tensorrt.options import INPUT_NAME, OUTPUT_NAME, TensorRTOptions
from gmf_edge.engines.tensorrt.plugins import load_plugin_library
from gmf_edge.engines.tensorrt.sidecar import REBUILD
from gmf_edge.engines.tensorrt.versions import TensorRTVersion
from gmf_edge.errors import EngineError
from gmf_edge.spec import BatchProfile

if TYPE_CHECKING:
    import tensorrt as trt

# each captured batch size costs an execution context's activation memory
MOST_GRAPHS = 8


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


def deserialize(
    content: bytes, version: TensorRTVersion, options: TensorRTOptions, log: BuildLog, refit_from: Path | None
) -> tuple[trt.Runtime, trt.ICudaEngine]:
    """The engine of its raw bytes, with its plugins loaded and its weights put back from an ONNX file where it was stripped.

    Call it only where CUDA works: TensorRT 8.6 crashes the process otherwise.

    Raises:
        EngineError: TensorRT does not take the bytes, or the weights do not fit.
    """
    import tensorrt as trt

    runtime = trt.Runtime(log.logger)
    if options.version_compatible:
        # a version-compatible engine carries host code of the version that built it
        runtime.engine_host_code_allowed = True
    if options.dla_core is not None:
        runtime.DLA_core = options.dla_core
    if options.plugin_library is not None:
        load_plugin_library(options.plugin_library, runtime.get_plugin_registry(), version, log)
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise EngineError(f"TensorRT {version.text} does not take the engine: {log.last_errors}", REBUILD)
    if refit_from is not None:
        refit(engine, version, refit_from, log)
    return runtime, engine


def refit(engine: trt.ICudaEngine, version: TensorRTVersion, graph: Path, log: BuildLog) -> None:
    """Exchange an engine's weights for those of an ONNX file of the same architecture; it must have been built stripped or refittable.

    Raises:
        EngineError: this TensorRT cannot do it from an ONNX file, or the weights do not fit.
    """
    if version.has_strip_plan:
        import tensorrt as trt

        refitter = trt.Refitter(engine, log.logger)
        if not trt.OnnxParserRefitter(refitter, log.logger).refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
            raise EngineError(f"the weights of {graph.name} do not fit the engine: {log.last_errors}", REBUILD)
    else:
        raise EngineError(f"TensorRT {version.text} cannot refit from an ONNX file", REBUILD)


def read_profile(engine: trt.ICudaEngine) -> BatchProfile:
    """The batch sizes that an engine accepts."""
    low, opt, high = engine.get_tensor_profile_shape(INPUT_NAME, 0)
    return BatchProfile(int(low[0]), int(opt[0]), int(high[0]))


class Lane:
    """One inference in flight: a stream with its buffers, contexts and graphs."""

    def __init__(self, engine: trt.ICudaEngine, log: BuildLog, io: EngineIO, use_graphs: bool) -> None:
        self.engine = engine
        self.log = log
        self.io = io
        self.use_graphs = use_graphs
        self.notes: list[str] = []
        self.stream = Stream()
        self.host_images = PinnedArray((io.profile.max, *io.image_shape), io.input_dtype)
        self.host_logits = PinnedArray((io.profile.max, io.classes), io.output_dtype)
        self.device_images = DeviceBuffer(self.host_images.array.nbytes)
        self.device_logits = DeviceBuffer(self.host_logits.array.nbytes)
        self.events = [Event() for _ in range(4)]
        self.context = self._new_context()
        self.graphs: dict[int, tuple[trt.IExecutionContext, Graph]] = {}

    def _new_context(self) -> trt.IExecutionContext:
        context = self.engine.create_execution_context()
        if context is None:
            raise EngineError(
                f"no execution context could be made: {self.log.last_errors}",
                "use smaller batches or fewer streams, or close other programs",
            )
        if not context.set_optimization_profile_async(0, self.stream.handle):
            raise EngineError(f"the batch profile could not be chosen: {self.log.last_errors}", REBUILD)
        self.stream.synchronize()
        return context

    def enqueue(self, context: trt.IExecutionContext, batch: int, images: int, logits: int, stream: int) -> None:
        """Enqueue one inference on device addresses.

        Raises:
            EngineError: TensorRT refuses it.
        """
        done = context.set_input_shape(INPUT_NAME, (batch, *self.io.image_shape))
        done = done and context.set_tensor_address(INPUT_NAME, images) and context.set_tensor_address(OUTPUT_NAME, logits)
        if not done or not context.execute_async_v3(stream):
            raise EngineError(f"TensorRT could not run a batch of {batch}: {self.log.last_errors}", "see TensorRT's messages")

    def compute(self, batch: int) -> None:
        """Enqueue one inference on this lane's own buffers, from its graph where there is one."""
        if self.use_graphs and batch not in self.graphs and len(self.graphs) < MOST_GRAPHS:
            self._capture(batch)
        if batch in self.graphs:
            self.graphs[batch][1].launch(self.stream)
        else:
            self.enqueue(self.context, batch, self.device_images.pointer, self.device_logits.pointer, self.stream.handle)

    def _capture(self, batch: int) -> None:
        context = self._new_context()

        def enqueue() -> None:
            self.enqueue(context, batch, self.device_images.pointer, self.device_logits.pointer, self.stream.handle)

        # the first run loads kernels and allocates, which must not happen inside a capture
        enqueue()
        self.stream.synchronize()
        try:
            self.graphs[batch] = (context, Graph.capture(self.stream, enqueue))
        except EngineError as error:
            self.use_graphs = False
            self.notes.append(f"no CUDA graph could be captured, each layer is launched by itself: {error.problem}")

    def start(self, images: FloatArray) -> None:
        """Enqueue copy, compute and copy back."""
        batch = len(images)
        # converts to the engine's input type on the way
        np.copyto(self.host_images.array[:batch], images, casting="same_kind")
        self.stream.copy_to_device(self.device_images.pointer, self.host_images.pointer, batch * self.io.image_bytes)
        self.compute(batch)
        self.stream.copy_to_host(self.host_logits.pointer, self.device_logits.pointer, batch * self.io.logit_bytes)

    def finish(self, batch: int) -> FloatArray:
        """Wait, and copy the logits out of the pinned buffer."""
        self.stream.synchronize()
        return self.host_logits.array[:batch].astype(np.float32)

    def timed(self, images: FloatArray, transfers: bool) -> StepTimes:
        """start, with an event between the steps."""
        batch = len(images)
        np.copyto(self.host_images.array[:batch], images, casting="same_kind")
        self._ensure_captured(batch)
        begin = time.perf_counter()
        self.events[0].record(self.stream)
        if transfers:
            self.stream.copy_to_device(self.device_images.pointer, self.host_images.pointer, batch * self.io.image_bytes)
        self.events[1].record(self.stream)
        self.compute(batch)
        self.events[2].record(self.stream)
        if transfers:
            self.stream.copy_to_host(self.host_logits.pointer, self.device_logits.pointer, batch * self.io.logit_bytes)
        self.events[3].record(self.stream)
        enqueue_ms = (time.perf_counter() - begin) * 1e3
        self.stream.synchronize()
        h2d, compute, d2h = (later.ms_since(earlier) for earlier, later in zip(self.events, self.events[1:], strict=False))
        return StepTimes(enqueue_ms, h2d, compute, d2h)

    def compute_times_ms(self, images: FloatArray, batch: int, count: int) -> NDArray[np.float64]:
        """One event between any two of count + 1 inferences; the first fills the queue, so that the GPU never waits for the host."""
        np.copyto(self.host_images.array[:batch], images, casting="same_kind")
        self._ensure_captured(batch)
        self.stream.copy_to_device(self.device_images.pointer, self.host_images.pointer, batch * self.io.image_bytes)
        events = [Event() for _ in range(count + 1)]
        try:
            for event in events:
                self.compute(batch)
                event.record(self.stream)
            self.stream.synchronize()
            return np.array([later.ms_since(earlier) for earlier, later in itertools.pairwise(events)], np.float64)
        finally:
            for event in events:
                event.close()

    def _ensure_captured(self, batch: int) -> None:
        """Capturing is no part of an inference's time."""
        if self.use_graphs and batch not in self.graphs and len(self.graphs) < MOST_GRAPHS:
            self._capture(batch)

    def forget_graphs(self) -> None:
        """Release the captured graphs; the next inference of each batch size captures again."""
        self.stream.synchronize()
        for _, graph in self.graphs.values():
            graph.close()
        self.graphs.clear()

    def close(self) -> None:
        """Release everything; contexts after the graphs that were captured from them."""
        self.forget_graphs()
        for event in self.events:
            event.close()
        for pinned in (self.host_images, self.host_logits):
            pinned.close()
        for buffer in (self.device_images, self.device_logits):
            buffer.close()
        self.stream.close()
        del self.context


@dataclass(frozen=True)
class EngineIO:
    """What goes in and out: "images" [B, 3, H, W] and "logits" [B, classes].

    Attributes:
        profile: accepted batch sizes.
        image_shape: (3, H, W).
        classes: width of the logits.
        input_dtype, output_dtype: float32 or float16.
    """

    profile: BatchProfile
    image_shape: tuple[int, int, int]
    classes: int
    input_dtype: np.dtype[Any]
    output_dtype: np.dtype[Any]

    @property
    def image_bytes(self) -> int:
        """Size of one image in the engine's input type."""
        channels, height, width = self.image_shape
        return channels * height * width * self.input_dtype.itemsize

    @property
    def logit_bytes(self) -> int:
        """Size of one image's logits in the engine's output type."""
        return self.classes * self.output_dtype.itemsize

    @classmethod
    def of(cls, engine: trt.ICudaEngine) -> EngineIO:
        """Of a deserialised engine.

        Raises:
            EngineError: it is not one of this project's: other tensors, or other types.
        """
        import tensorrt as trt

        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        if sorted(names) != sorted((INPUT_NAME, OUTPUT_NAME)):
            raise EngineError(f"the engine's tensors are {', '.join(names)}, not {INPUT_NAME} and {OUTPUT_NAME}", REBUILD)
        types: dict[trt.DataType, np.dtype[Any]] = {
            trt.DataType.FLOAT: np.dtype(np.float32),
            trt.DataType.HALF: np.dtype(np.float16),
        }
        dtypes = []
        for name in (INPUT_NAME, OUTPUT_NAME):
            dtype = engine.get_tensor_dtype(name)
            if dtype not in types:
                raise EngineError(f"the engine's {name} has type {dtype}, neither FLOAT nor HALF", REBUILD)
            dtypes.append(types[dtype])
        _, channels, height, width = engine.get_tensor_shape(INPUT_NAME)
        classes = engine.get_tensor_shape(OUTPUT_NAME)[1]
        return cls(read_profile(engine), (int(channels), int(height), int(width)), int(classes), dtypes[0], dtypes[1])


class TensorRTEngine:
    """An opened engine; see the head of this file. Not thread-safe: use one per thread."""

    def __init__(
        self,
        runtime: trt.Runtime,
        engine: trt.ICudaEngine,
        log: BuildLog,
        facts: EngineFacts,
        streams: int = 1,
        cuda_graphs: bool = True,
    ) -> None:
        self._runtime = runtime  # must outlive the engine
        self._engine = engine
        self._log = log
        self._facts = facts
        self.io = EngineIO.of(engine)
        self._lanes: list[Lane] = []
        self._open = True
        try:
            for _ in range(streams):
                self._lanes.append(Lane(engine, log, self.io, cuda_graphs))
        except BaseException:
            self.close()
            raise

    @property
    def facts(self) -> EngineFacts:
        """What it is, with what was found while it ran."""
        found = tuple(dict.fromkeys(note for lane in self._lanes for note in lane.notes))
        facts = self._facts
        if not found:
            return facts
        return replace(facts, notes=(*facts.notes, *found))

    @property
    def profile(self) -> BatchProfile:
        """The batch sizes that it accepts."""
        return self.io.profile

    def _check(self, shape: tuple[int, ...]) -> int:
        """The batch size of images of that shape."""
        if not self._open:
            raise EngineError("the engine is closed", "open it again")
        profile, wanted = self.io.profile, self.io.image_shape
        if len(shape) != 4 or tuple(shape[1:]) != wanted:
            raise EngineError(f"images have shape {tuple(shape)}", f"this engine takes [B, {', '.join(map(str, wanted))}]")
        if not profile.min <= shape[0] <= profile.max:
            raise EngineError(
                f"a batch of {shape[0]} is outside the engine's profile {profile.min}..{profile.max}",
                "split the batch, or build with other --min-batch and --max-batch",
            )
        return shape[0]

    def infer(self, images: FloatArray) -> FloatArray:
        """Preprocessed images [B, 3, H, W], FP32 -> logits [B, classes], FP32.

        Raises:
            EngineError: wrong shape, a batch size outside the profile, or TensorRT could not run it.
        """
        batch = self._check(images.shape)
        self._lanes[0].start(images)
        return self._lanes[0].finish(batch)

    def infer_many(self, batches: Iterable[FloatArray]) -> Iterator[FloatArray]:
        """The logits of each batch in order, with as many batches in flight as the engine has streams.

        Raises:
            EngineError: as infer.
        """
        in_flight: list[tuple[Lane, int]] = []
        for number, images in enumerate(batches):
            lane = self._lanes[number % len(self._lanes)]
            batch = self._check(images.shape)
            if len(in_flight) == len(self._lanes):
                first, size = in_flight.pop(0)
                yield first.finish(size)
            lane.start(images)
            in_flight.append((lane, batch))
        for lane, size in in_flight:
            yield lane.finish(size)

    def infer_device(self, images: Any, out: Any = None, stream: int | None = None) -> Any:
        """Images in GPU memory -> logits in GPU memory, without a copy.

        Args:
            images: [B, 3, H, W], contiguous, of the engine's input type; any object with __dlpack__ or __cuda_array_interface__.
            out: [B, classes] of the engine's output type to write into, or None for an array that this engine owns and the next
                call overwrites.
            stream: handle of the caller's CUDA stream: the work is enqueued there and not waited for, and calls must follow each
                other on it. None: the work is complete on return.

        Returns:
            `out`, or a DeviceView (it has __cuda_array_interface__).

        Raises:
            EngineError: wrong shape, type or place, or TensorRT could not run it.
        """
        lane = self._lanes[0]
        own = lane.stream if stream is None else None
        source = device_view(images, own, "images")
        batch = self._check(source.shape)
        target = (
            DeviceView(lane.device_logits.pointer, (batch, self.io.classes), self.io.output_dtype, self)
            if out is None
            else device_view(out, own, "out")
        )
        for view, dtype, name in ((source, self.io.input_dtype, "images"), (target, self.io.output_dtype, "out")):
            if view.dtype != dtype:
                raise EngineError(f"{name} has type {view.dtype}, the engine's is {dtype}", "convert it on the GPU first")
        if target.shape != (batch, self.io.classes):
            raise EngineError(f"out has shape {target.shape}", f"give [{batch}, {self.io.classes}]")
        handle = lane.stream.handle if stream is None else stream
        lane.enqueue(lane.context, batch, source.pointer, target.pointer, handle)
        if stream is None:
            lane.stream.synchronize()
        return target if out is None else out

    def infer_timed(self, images: FloatArray, transfers: bool = True) -> StepTimes:
        """One inference with the time of each step; without transfers, the compute of whatever lies in the device buffer.

        Raises:
            EngineError: as infer.
        """
        self._check(images.shape)
        return self._lanes[0].timed(images, transfers)

    def compute_times_ms(self, images: FloatArray, count: int) -> NDArray[np.float64]:
        """GPU time in milliseconds of each of `count` inferences, enqueued one after the other; see engines.protocol.Engine.

        Raises:
            EngineError: as infer.
        """
        batch = self._check(images.shape)
        return self._lanes[0].compute_times_ms(images, batch, count)

    @property
    def memory_mib(self) -> dict[str, float]:
        """GPU memory in MiB: an execution context's activations, and the device buffers of one lane."""
        buffers = self._lanes[0].device_images.size + self._lanes[0].device_logits.size
        return {
            "activations": device_memory_bytes(self._engine, TensorRTVersion.here()) / 2**20,
            "buffers": buffers / 2**20,
            "streams": float(len(self._lanes)),
        }

    def refit_from(self, graph: Path) -> None:
        """Exchange the weights, without a build, for those of an ONNX file of the same architecture (an engine built with refit).

        Prove the result: nothing is known of what the new weights compute.

        Raises:
            EngineError: as refit, or an engine with INT8 layers: TensorRT folds their weights into kernels that a refit does not reach.
        """
        if self._facts.precision_shares.get("int8"):
            raise EngineError("INT8 weights cannot be exchanged in a built engine", "run 'gmf-edge deploy' with the new bundle")
        for lane in self._lanes:
            lane.forget_graphs()
        refit(self._engine, TensorRTVersion.here(), graph, self._log)

    def inspector_json(self) -> str:
        """The engine inspector's answer for the opt batch size."""
        context = self._lanes[0].context
        context.set_input_shape(INPUT_NAME, (self.io.profile.opt, *self.io.image_shape))
        return inspector_json(self._engine, context)

    def layer_times_ms(self, runs: int = 10) -> LayerTimes:
        """(name, mean milliseconds) of each layer at the opt batch size in execution order, by TensorRT's profiler, without CUDA graphs.

        The profiler makes each layer wait for the one before: the sum is above the latency of an unprofiled run.
        """
        lane = self._lanes[0]
        batch = self.io.profile.opt
        context = lane._new_context()
        reports, profiler = layer_profiler()

        def run() -> None:
            lane.enqueue(context, batch, lane.device_images.pointer, lane.device_logits.pointer, lane.stream.handle)
            lane.stream.synchronize()

        run()  # loads the kernels
        context.profiler = profiler
        profiled = []
        for _ in range(runs):
            run()
            profiled.append(list(reports))
            reports.clear()
        return mean_times(profiled)

    def close(self) -> None:
        """Release its memory; further calls of infer raise EngineError."""
        if self._open:
            self._open = False
            for lane in self._lanes:
                lane.close()
            self._lanes = []
            del self._engine, self._runtime

    def __enter__(self) -> TensorRTEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def layer_profiler() -> tuple[list[tuple[str, float]], trt.IProfiler]:
    """((layer name, milliseconds) as reported, which grows with every profiled run; the profiler to hand to a context)."""
    import tensorrt as trt

    reports: list[tuple[str, float]] = []

    class Profiler(trt.IProfiler):  # type: ignore[misc]  # untyped where TensorRT is not installed
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            reports.append((layer_name, ms))

    return reports, Profiler()


def mean_times(runs: Sequence[Sequence[tuple[str, float]]]) -> LayerTimes:
    """Mean of each layer over the runs, in the order of the first; the n-th report of a name is one layer."""
    totals: dict[tuple[str, int], float] = {}
    for run in runs:
        seen: Counter[str] = Counter()
        for name, ms in run:
            key = (name, seen[name])
            totals[key] = totals.get(key, 0.0) + ms
            seen[name] += 1
    return [(name, total / len(runs)) for (name, _), total in totals.items()]


def inspector_json(engine: trt.ICudaEngine, context: trt.IExecutionContext) -> str:
    """The engine inspector's answer; with dynamic shapes it tells types only for a context whose shapes are set."""
    import tensorrt as trt

    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def device_memory_bytes(engine: trt.ICudaEngine, version: TensorRTVersion) -> int:
    """Activation memory of one execution context in bytes."""
    if version.has_device_memory_size_v2:
        return int(engine.device_memory_size_v2)
    return int(engine.device_memory_size)
