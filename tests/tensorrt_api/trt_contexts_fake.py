"""Execution contexts of the stand-in TensorRT, as strict as NvInferRuntime.h: what they need, what they must not do, what they use.

An enqueue reads the images, writes the logits, and has the context and its activation memory for itself until it is over: on
cuda_fake's clocks two of them in flight at once are a race. In a capture it needs an enqueue of the same shape before, and none of
setInputShape in between, because the first enqueue after it allocates (8.6, enqueueV2's note). A context whose graph lives must not
change and not go away.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from fake_gpu import ALIGNMENT, CALL_MS, Work

if TYPE_CHECKING:
    from trt_fake import FakeTensorRT

CLASSES = 5
# name -> (channels, stride) of a backbone's outputs
MAP_CHANNELS = {"stage1": (2, 4), "stage2": (3, 8), "stage3": (4, 16), "stage4": (5, 32)}
ACTIVATION_BYTES = 3 << 20


def output_of(images: np.ndarray[Any, Any], channels: int, stride: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What the stand-in computes: logits [B, channels] of stride 0, else a map [B, channels, H / stride, W / stride]."""
    exact = images.astype(np.float64)
    if not stride:
        return exact.mean(axis=(1, 2, 3))[:, None] + np.arange(channels)
    batch, _, height, width = exact.shape
    tiles = exact.mean(axis=1).reshape(batch, height // stride, stride, width // stride, stride).mean(axis=(2, 4))
    return tiles[:, None] + np.arange(channels)[:, None, None]


class FakeContexts:
    """What IExecutionContext does; `made` counts the contexts that were created."""

    def __init__(self, tensorrt: FakeTensorRT) -> None:
        self.trt = tensorrt
        self.cuda = tensorrt.cuda
        self.made = 0
        tensorrt.types["IExecutionContext"].__del__ = lambda context: self._gone(context)

    def _says(self, engine: Any, text: str) -> None:
        engine._logger.log(self.trt.types["ILogger.Severity"].ERROR, text)

    def create(self, engine: Any, strategy: Any = None, owns_memory: bool = True) -> Any:
        """ICudaEngine.create_execution_context: with memory of its own, or None where the GPU has no more."""
        if strategy is not None and strategy.name == "USER_MANAGED":
            owns_memory = False
        pointer = self.cuda.allocate(ACTIVATION_BYTES) if owns_memory else None
        if owns_memory and pointer is None:
            self._says(engine, f"Error Code 2: OutOfMemory (Requested size was {ACTIVATION_BYTES} bytes.)")
            return None
        self.made += 1
        context = self.trt.types["IExecutionContext"]()
        context._engine, context._addresses, context._shape = engine, {}, None
        context._memory = (pointer, ACTIVATION_BYTES) if pointer is not None else None
        context._owned, context._place = pointer, next(self.cuda.handles)
        context._is_prepared = context._is_captured = False
        return context

    def _gone(self, context: Any) -> None:
        # the exception itself is lost in __del__: the violation is kept
        if "_place" in context.__dict__:
            self.cuda.must_be_idle(context._place, "an execution context is released")
            if context._owned is not None:
                self.cuda.release(context._owned, "an execution context is released")

    def set_memory(self, context: Any, memory: int, size: int) -> None:
        """IExecutionContext.set_device_memory."""
        context._memory = (memory, size)

    def set_input_shape(self, context: Any, name: str, shape: Any) -> bool:
        """IExecutionContext.set_input_shape."""
        if context._is_captured:
            raise self.cuda.violation("a context must not change under the graph that was captured from it")
        low, _, high = context._engine._profile
        if not (len(shape) == len(low) and all(a <= side <= b for a, side, b in zip(low, shape, high, strict=True))):
            self._says(context._engine, f"the shape of {name} is outside the profile")
            return False
        context._shape, context._is_prepared = tuple(shape), False
        return True

    def execute(self, context: Any, stream_handle: int) -> bool:
        """IExecutionContext.execute_async_v3."""
        engine, model = context._engine, self.trt.model
        batch, dtype = context._shape[0], np.dtype(np.float32 if model.engine_type == "FLOAT" else np.float16)
        size, source = int(np.prod(context._shape)) * dtype.itemsize, context._addresses["images"]
        height, width = context._shape[2:]
        shapes = {
            name: (batch, channels, height // stride, width // stride) if stride else (batch, channels)
            for name, (channels, stride) in self.trt.outputs.items()
        }
        targets = {name: (context._addresses[name], int(np.prod(shape)) * dtype.itemsize) for name, shape in shapes.items()}
        # 8.6 and 10.0 take the memory as a property, without its size
        told = context.__dict__["_values"].get("device_memory")
        memory = context._memory or (None if told is None else (told, ACTIVATION_BYTES))
        if memory is None or memory[1] < ACTIVATION_BYTES:
            self._says(engine, "the execution context has no device memory")
            return False
        if engine._cuda_context != self.cuda.context:
            self._says(engine, "Cuda Runtime (invalid resource handle)")
            return False
        if any(address % ALIGNMENT for address in (source, memory[0], *(target for target, _ in targets.values()))):
            raise self.cuda.violation("TensorRT is given an address that is not a multiple of 256 bytes")
        # a launch for each layer
        self.cuda.spend(model.launch_ms)
        if self.cuda.is_capturing(stream_handle):
            if model.capture_fails or not context._is_prepared:
                self.cuda.streams[stream_handle].invalidated = True
                self.cuda.last_error = self.cuda.cudaError_t.cudaErrorStreamCaptureInvalidated
                self._says(engine, "Cuda Runtime (operation failed due to a previous error during capture)")
                return False
            context._is_captured = True
        shape, alive = context._shape, weakref.ref(context)

        def check() -> None:
            if alive() is None:
                raise self.cuda.violation("a graph runs whose execution context is gone")

        def compute() -> None:
            images = np.frombuffer((ctypes.c_ubyte * size).from_address(source), dtype).reshape(shape)
            for name, (channels, stride) in self.trt.outputs.items():
                result = output_of(images, channels, stride).astype(dtype).tobytes()
                assert len(result) == targets[name][1]
                ctypes.memmove(targets[name][0], result, len(result))

        work = Work(
            f"inference of a batch of {batch}",
            compute,
            model.compute_ms,
            reads=[(source, size)],
            writes=[*targets.values(), memory],
            uses_alone=[context._place],
            check=check,
        )
        if self.cuda.kernel(stream_handle, work):
            self._says(engine, "Cuda Runtime (invalid resource handle)")
            return False
        context._is_prepared = True
        profiler = context.__dict__["_values"].get("profiler")
        if profiler is not None:
            for layer in self.trt.inspected()["Layers"]:
                profiler.report_layer_time(layer["Name"], 2.0 if "softmax" not in layer["Metadata"] else 0.5)
        return True

    def choose_profile(self, context: Any, profile_index: int, stream_handle: int) -> bool:
        """IExecutionContext.set_optimization_profile_async: it may copy on the stream."""
        work = Work("choosing a profile", lambda: None, CALL_MS, uses_alone=[context._place])
        return profile_index == 0 and not self.cuda.kernel(stream_handle, work)
