"""An opened TensorRT engine: images in, logits or a backbone's maps out.

    with open_engine(path, sidecar) as engine:
        logits = engine.infer(images)                 NumPy, through pinned memory
        logits = engine.infer_device(gpu_images)      PyTorch, CuPy, PyCUDA or Numba, without a copy
        for logits in engine.infer_many(batches):     several batches in flight, one per stream

    with open_engine(backbone, sidecar) as engine:
        maps = engine.infer_maps(images)              {"stage1": [B, C, H / 4, W / 4], ...}
        maps = engine.infer_device(gpu_images)        the same in GPU memory

Each lane (lane.py) is a stream with what it needs. All calls run in the CUDA context in which the engine was opened, whatever GPU or
context the calling thread has as its current one (cuda_context.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from gmf_edge.engines.protocol import EngineFacts, FloatArray, require_task
from gmf_edge.engines.tensorrt.arrays import DeviceView, device_view
from gmf_edge.engines.tensorrt.cuda import order
from gmf_edge.engines.tensorrt.cuda_context import CudaContext
from gmf_edge.engines.tensorrt.inspect import LayerTimes
from gmf_edge.engines.tensorrt.lane import InFlight, Lane, StepTimes
from gmf_edge.engines.tensorrt.load import refit
from gmf_edge.engines.tensorrt.log import BuildLog
from gmf_edge.engines.tensorrt.tensors import EngineIO
from gmf_edge.engines.tensorrt.trace import trace_lanes
from gmf_edge.engines.tensorrt.versions import TensorRTVersion
from gmf_edge.engines.trace import LayerRuns, Traced, TracePlan
from gmf_edge.errors import EngineError
from gmf_edge.spec import IMAGES, LOGITS, BatchProfile, Task

if TYPE_CHECKING:
    import tensorrt as trt

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Method = Callable[Concatenate["TensorRTEngine", Arguments], Result]


def in_its_context(method: Method[Arguments, Result]) -> Method[Arguments, Result]:
    """A method of an open engine, run in the engine's CUDA context; the thread gets its own back."""

    @wraps(method)
    def called(self: TensorRTEngine, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if not self.is_open:
            raise EngineError("the engine is closed", "open it again")
        with self.cuda_context.current():
            return method(self, *args, **kwargs)

    return called


class TensorRTEngine:
    """An opened engine; see the head of this file. Not thread-safe: one thread at a time, whichever.

    Attributes:
        io: shapes and types.
        cuda_context: where it was opened, and runs.
        is_open: until close.
    """

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
        self._notes: list[str] = []
        self.io = EngineIO.of(engine)
        self.cuda_context = CudaContext.here()
        self._lanes: list[Lane] = []
        self.is_open = True
        try:
            for _ in range(streams):
                self._lanes.append(Lane(engine, log, self.io, cuda_graphs, self._notes))
        except BaseException:
            self.close()
            raise

    @property
    def facts(self) -> EngineFacts:
        """What it is, with what was found while it ran."""
        return replace(self._facts, notes=(*self._facts.notes, *self._notes))

    @property
    def profile(self) -> BatchProfile:
        """The batch sizes that it accepts."""
        return self.io.profile

    @property
    def task(self) -> Task:
        """What comes out."""
        return self.io.task

    @in_its_context
    def infer(self, images: FloatArray) -> FloatArray:
        """Preprocessed images [B, 3, H, W], FP32 -> logits [B, classes], FP32.

        Raises:
            EngineError: wrong shape, a batch size outside the profile, a backbone, or TensorRT could not run it.
        """
        require_task(self.task, Task.CLASSIFY)
        self.io.batch_of(images.shape)
        lane = self._lanes[0]
        return lane.finish(lane.start(images))[LOGITS]

    @in_its_context
    def infer_maps(self, images: FloatArray) -> Mapping[str, FloatArray]:
        """Preprocessed images [B, 3, H, W], FP32 -> a backbone's maps by name, [B, C, H / stride, W / stride], FP32.

        Raises:
            EngineError: wrong shape, a batch or image size outside the profile, a classifier, or TensorRT could not run it.
        """
        require_task(self.task, Task.FEATURES)
        self.io.batch_of(images.shape)
        lane = self._lanes[0]
        return lane.finish(lane.start(images))

    def infer_many(self, batches: Iterable[FloatArray]) -> Iterator[FloatArray]:
        """The logits of each batch in order, with as many batches in flight as the engine has streams.

        Other calls may come between two results.

        Raises:
            EngineError: as infer.
        """
        for outputs in self._streamed(batches, Task.CLASSIFY):
            yield outputs[LOGITS]

    def infer_many_maps(self, batches: Iterable[FloatArray]) -> Iterator[Mapping[str, FloatArray]]:
        """As infer_many, the maps of each batch; the image sizes may differ from batch to batch.

        Raises:
            EngineError: as infer_maps.
        """
        return self._streamed(batches, Task.FEATURES)

    def _streamed(self, batches: Iterable[FloatArray], task: Task) -> Iterator[dict[str, FloatArray]]:
        require_task(self.task, task)
        in_flight: list[tuple[Lane, InFlight]] = []
        for number, images in enumerate(batches):
            if in_flight and len(in_flight) == len(self._lanes):
                yield self._finish(*in_flight.pop(0))
            in_flight.append(self._start(number, images))
        for lane, started in in_flight:
            yield self._finish(lane, started)

    @in_its_context
    def _start(self, number: int, images: FloatArray) -> tuple[Lane, InFlight]:
        self.io.batch_of(images.shape)
        lane = self._lanes[number % len(self._lanes)]
        return lane, lane.start(images)

    @in_its_context
    def _finish(self, lane: Lane, started: InFlight) -> dict[str, FloatArray]:
        return lane.finish(started)

    @in_its_context
    def infer_device(self, images: Any, out: Any = None, stream: int | None = None) -> Any:
        """Images in GPU memory -> logits or maps in GPU memory, without a copy.

        What the arrays' libraries have under way on them is waited for on the GPU. Arrays that come again, at the same addresses and
        with the same shape, are replayed from a CUDA graph from the third time on: keep one array for the images and one for
        `out`, or let a caching allocator do it.

        Args:
            images: [B, 3, H, W], contiguous, of the engine's input type; any object with __dlpack__ or __cuda_array_interface__.
            out: [B, classes] of the engine's output type to write into, or a mapping of such an array for each map of a backbone; None
                for arrays that this engine owns and the next infer_device overwrites.
            stream: handle of the caller's CUDA stream (0 or 1 for the default one): the work begins behind what is on it now, later
                work on it begins behind the result, and nothing is waited for. None: the work is complete on return.

        Returns:
            `out`, or a DeviceView (it has __cuda_array_interface__, which names the stream to wait for where it is not complete), of a
            backbone a dict of them.

        Raises:
            EngineError: wrong shape, type or place, or TensorRT could not run it.
        """
        lane = self._lanes[0]
        if stream is not None:
            self.cuda_context.check_stream(stream, "the given stream")
            lane.stream.wait_for(stream)
        source = device_view(images, self.cuda_context, lane.stream, "images")
        batch = self.io.batch_of(source.shape)
        size = (source.shape[2], source.shape[3])
        self._check_view(source, "images", source.shape, self.io.input_dtype)
        views: dict[str, DeviceView] = {}
        for output, buffer in zip(self.io.outputs, lane.device_results, strict=True):
            shape = (batch, *output.shape(size))
            if out is None:
                written_on = None if stream is None else lane.stream.handle
                views[output.name] = DeviceView(buffer.pointer, shape, output.dtype, self, written_on)
            else:
                name, given = ("out", out) if self.task is Task.CLASSIFY else (f"out[{output.name!r}]", _entry(out, output.name))
                views[output.name] = device_view(given, self.cuda_context, lane.stream, name, is_written=True)
                self._check_view(views[output.name], name, shape, output.dtype)
        lane.run(batch, size, source.pointer, [view.pointer for view in views.values()])
        if stream is None:
            lane.stream.synchronize()
        else:
            order(lane.stream.handle, stream)
        if out is not None:
            return out
        return views[LOGITS] if self.task is Task.CLASSIFY else views

    @staticmethod
    def _check_view(view: DeviceView, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        if view.dtype != dtype:
            raise EngineError(f"{name} has type {view.dtype}, the engine's is {dtype}", "convert it on the GPU first")
        if view.shape != shape:
            raise EngineError(f"{name} has shape {view.shape}", f"give [{', '.join(map(str, shape))}]")

    @in_its_context
    def infer_timed(self, images: FloatArray, transfers: bool = True) -> StepTimes:
        """One inference with the time of each step, without the time in which an idle GPU waits for Python.

        Raises:
            EngineError: as infer.
        """
        self.io.batch_of(images.shape)
        return self._lanes[0].timed(images, transfers)

    @in_its_context
    def compute_times_ms(self, images: FloatArray, count: int) -> NDArray[np.float64]:
        """GPU time in ms of each of `count` inferences of these images [B, 3, H, W], by CUDA events; [count].

        They are enqueued one after the other, from their CUDA graph where graphs are on, after a first one that is not counted;
        transfers are no part of it, and nor are the CPU's calls as long as they keep ahead of the GPU.

        Raises:
            EngineError: as infer.
        """
        self.io.batch_of(images.shape)
        return self._lanes[0].compute_times(images, count)

    @in_its_context
    def trace(self, images: FloatArray, plan: TracePlan) -> Traced:
        """Inferences back to back, with the time of each step of each: see gmf_edge.engines.trace.

        Raises:
            EngineError: as infer, or the engine was opened with fewer streams than the plan's.
        """
        self.io.batch_of(images.shape)
        if plan.streams > len(self._lanes):
            raise EngineError(f"{plan.streams} streams of an engine that has {len(self._lanes)}", "open it with as many streams")
        return trace_lanes(self._lanes[: plan.streams], images, plan)

    @property
    def memory_mib(self) -> dict[str, float]:
        """GPU memory in MiB of all its streams together: activations, and buffers of images and logits; and how many streams.

        The weights, the CUDA context and what CUDA graphs need come on top.
        """
        return {
            "activations": sum(lane.contexts.activation_bytes for lane in self._lanes) / 2**20,
            "buffers": sum(lane.buffer_bytes for lane in self._lanes) / 2**20,
            "streams": float(len(self._lanes)),
        }

    @in_its_context
    def refit_from(self, graph: Path) -> None:
        """Exchange the weights, without a build, for those of an ONNX file of the same architecture (an engine built with refit).

        Prove the result: nothing is known of what the new weights compute.

        Raises:
            EngineError: as refit, or an engine with INT8 layers: TensorRT folds their weights into kernels that a refit does not reach.
        """
        if self._facts.precision_shares.get("int8"):
            raise EngineError("INT8 weights cannot be exchanged in a built engine", "run 'gmf-edge deploy' with the new bundle")
        for lane in self._lanes:
            lane.collect()
            lane.forget_graphs()
        refit(self._engine, TensorRTVersion.here(), graph, self._log)

    @in_its_context
    def inspector_json(self) -> str:
        """The engine inspector's answer for the opt batch size."""
        context = self._lanes[0].context
        context.set_input_shape(IMAGES, (self.io.profile.opt, *self.io.image_shape))
        return inspector_json(self._engine, context)

    def layer_times_ms(self, runs: int = 10) -> LayerTimes:
        """(name, mean milliseconds) of each layer at the opt batch size in execution order: see layer_runs."""
        return [(layer.name, sum(layer.times_ms) / runs) for layer in self.layer_runs(runs)]

    @in_its_context
    def layer_runs(self, runs: int) -> list[LayerRuns]:
        """Each layer's times at the opt batch size in execution order, by TensorRT's profiler, without CUDA graphs.

        The profiler makes each layer wait for the one before: the sum is above the latency of an unprofiled run.
        """
        lane = self._lanes[0]
        batch = self.io.profile.opt
        context = lane.contexts.new()
        reports, profiler = layer_profiler()

        def run() -> None:
            lane.enqueue(context, batch, self.io.image_size, lane.device_images.pointer, lane.output_pointers, lane.stream.handle)
            lane.stream.synchronize()

        run()  # loads the kernels
        context.profiler = profiler
        profiled = []
        for _ in range(runs):
            run()
            profiled.append(list(reports))
            reports.clear()
        return runs_by_layer(profiled)

    def close(self) -> None:
        """Wait for what is in flight and release the memory; further calls raise EngineError."""
        if self.is_open:
            self.is_open = False
            lanes, self._lanes = self._lanes, []
            with ExitStack() as stack:
                # last of all: the engine after what was made from it
                stack.callback(self._forget_engine)
                stack.enter_context(self.cuda_context.current())
                for lane in lanes:
                    stack.callback(lane.close)

    def _forget_engine(self) -> None:
        del self._engine, self._runtime

    def __enter__(self) -> TensorRTEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None:
            self.close()
        else:
            # what cannot be released must not hide what led here
            with suppress(EngineError):
                self.close()


def _entry(out: Any, name: str) -> Any:
    """The array for one map.

    Raises:
        EngineError: no mapping, or one without it.
    """
    if not isinstance(out, Mapping) or name not in out:
        raise EngineError(f"out has no array for {name}", "give a mapping with an array for each of the maps, or leave it out")
    return out[name]


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


def runs_by_layer(runs: Sequence[Sequence[tuple[str, float]]]) -> list[LayerRuns]:
    """(layer name, milliseconds) as reported in each run -> each layer's times, in the order of the first run.

    The n-th report of a name is one layer.
    """
    times: dict[tuple[str, int], list[float]] = {}
    for run in runs:
        seen: Counter[str] = Counter()
        for name, ms in run:
            times.setdefault((name, seen[name]), []).append(ms)
            seen[name] += 1
    return [LayerRuns(name, tuple(found)) for (name, _), found in times.items()]


def inspector_json(engine: trt.ICudaEngine, context: trt.IExecutionContext) -> str:
    """The engine inspector's answer; with dynamic shapes it tells types only for a context whose shapes are set."""
    import tensorrt as trt

    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
