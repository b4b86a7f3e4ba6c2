"""The execution contexts of one stream, which take turns on one block of activation memory.

A captured CUDA graph needs an execution context of its own, whose shapes never change again. Contexts that allocate for themselves would
each hold the activations of the largest batch; those of one stream never run at once, so they share a block (NVIDIA's advice:
developer guide, "CUDA Graphs", and NVIDIA/TensorRT#3798).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gmf_edge.engines.tensorrt.cuda import DeviceBuffer, Stream
from gmf_edge.engines.tensorrt.log import BuildLog
from gmf_edge.engines.tensorrt.sidecar import REBUILD
from gmf_edge.engines.tensorrt.versions import TensorRTVersion
from gmf_edge.errors import EngineError

if TYPE_CHECKING:
    import tensorrt as trt


class Contexts:
    """Makes execution contexts for one stream; `activation_bytes` is what they hold together.

    Raises:
        EngineError: the GPU has no memory for the activations.
    """

    def __init__(self, engine: trt.ICudaEngine, log: BuildLog, stream: Stream) -> None:
        self.engine = engine
        self.log = log
        self.stream = stream
        self.version = TensorRTVersion.here()
        self.activation_bytes = device_memory_bytes(engine, self.version)
        self.activations = DeviceBuffer(self.activation_bytes) if self.activation_bytes else None

    def new(self) -> trt.IExecutionContext:
        """A context on the batch profile, to be used on the stream only.

        Raises:
            EngineError: it cannot be made.
        """
        context = self._without_memory() if self.activations is not None else self.engine.create_execution_context()
        if context is None:
            raise EngineError(
                f"no execution context could be made: {self.log.last_errors}",
                "use smaller batches or fewer streams, or close other programs",
            )
        if self.activations is not None:
            if self.version.has_device_memory_size_v2:
                context.set_device_memory(self.activations.pointer, self.activations.size)
            else:
                context.device_memory = self.activations.pointer
        if not context.set_optimization_profile_async(0, self.stream.handle):
            raise EngineError(f"the batch profile could not be chosen: {self.log.last_errors}", REBUILD)
        self.stream.synchronize()
        return context

    def _without_memory(self) -> trt.IExecutionContext:
        if self.version.has_device_memory_size_v2:
            import tensorrt as trt

            return self.engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        return self.engine.create_execution_context_without_device_memory()

    def close(self) -> None:
        """Free the activations; no context may run any more."""
        if self.activations is not None:
            self.activations.close()


def device_memory_bytes(engine: trt.ICudaEngine, version: TensorRTVersion) -> int:
    """Activation memory of an execution context in bytes, at the largest batch; 0 where TensorRT does not tell it.

    A version-compatible engine of an older major runs in the older one's runtime, which need not know the newer question ("The API
    supported at runtime ... is the intersection": developer guide, "Version Compatibility").
    """
    if version.has_device_memory_size_v2:
        return max(0, int(engine.device_memory_size_v2))
    return max(0, int(engine.device_memory_size))
