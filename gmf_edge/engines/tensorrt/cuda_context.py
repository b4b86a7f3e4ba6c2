"""Which CUDA context an engine lives in, and whose a pointer or a stream is.

An engine's kernels, streams and memory belong to the context that was current when it was opened: usually the primary context of one
GPU, which the CUDA runtime, PyTorch, CuPy and Numba share. CUDA keeps the current context per thread, so another thread, or
torch.cuda.set_device, may have another one; work that is launched there is refused or reaches memory that is not its own. A library
may also make a context of its own on the same GPU, as pycuda.autoinit does; its memory and streams cannot be used from the primary one.

The driver's cuCtxSetCurrent is used, not cudaSetDevice: that one would make the device's primary context current, and could not put a
library's own context back. Source: CUDA driver API, context management and unified addressing (cuPointerGetAttribute).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gmf_edge.engines.tensorrt.cuda import LEGACY_STREAM, PER_THREAD_STREAM, answer_of, call, driver
from gmf_edge.errors import EngineError

OTHER_CONTEXT_REMEDY = "use the GPU's primary context in both: with PyCUDA, import pycuda.autoprimaryctx instead of pycuda.autoinit"


@dataclass(frozen=True)
class CudaContext:
    """A CUDA context.

    Attributes:
        handle: CUcontext as a number.
        device: number of its GPU, as CUDA_VISIBLE_DEVICES orders them.
    """

    handle: int
    device: int

    @classmethod
    def here(cls) -> CudaContext:
        """The calling thread's current context; the primary one of the current GPU where there was none yet.

        Raises:
            EnvironmentProblem: there is no usable GPU.
        """
        call("cudaMemGetInfo")  # needs a context, so the runtime makes it now if there is none
        return cls(int(call("cuCtxGetCurrent")), int(call("cudaGetDevice")))

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make it the calling thread's current context, and put back the one that was."""
        before = call("cuCtxGetCurrent")
        if int(before) == self.handle:
            yield
            return
        call("cuCtxSetCurrent", self.handle)
        try:
            yield
        finally:
            # none (0) too: a thread that had no context has none afterwards
            call("cuCtxSetCurrent", int(before))

    def check_pointer(self, pointer: int, name: str) -> None:
        """Refuse memory that work in this context cannot use.

        Raises:
            EngineError: it lies on another GPU, belongs to another context, or is unknown to CUDA (freed, or never GPU memory).
        """
        attribute = driver().CUpointer_attribute
        code, device = answer_of("cuPointerGetAttribute", attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, pointer)
        if code:
            raise EngineError(
                f"{name} is at address {pointer:#x}, where CUDA knows no memory", "keep the array alive until the call returns"
            )
        if int(device) != self.device:
            raise self.on_other_device(name, int(device))
        # 0 or an error for memory of a pool (cudaMallocAsync) or mapped by hand: it belongs to the device
        code, owner = answer_of("cuPointerGetAttribute", attribute.CU_POINTER_ATTRIBUTE_CONTEXT, pointer)
        if not code and owner is not None and int(owner) not in (0, self.handle):
            raise EngineError(f"{name} belongs to another CUDA context of GPU {self.device} than the engine", OTHER_CONTEXT_REMEDY)

    def on_other_device(self, name: str, device: int) -> EngineError:
        """The error for an array of another GPU."""
        return EngineError(
            f"{name} lies on GPU {device}, the engine on GPU {self.device}", "copy it there, or open the engine on its GPU"
        )

    def check_stream(self, handle: int, name: str) -> None:
        """Refuse a stream that work in this context cannot be ordered with.

        Raises:
            EngineError: it belongs to another GPU or context, or records a CUDA graph.
        """
        is_default = handle in (0, LEGACY_STREAM, PER_THREAD_STREAM)
        if not is_default and int(call("cuStreamGetCtx", handle)) != self.handle:
            raise EngineError(
                f"{name} belongs to another GPU or CUDA context than the engine (GPU {self.device})", OTHER_CONTEXT_REMEDY
            )
        # a capture would record the waiting, and not what is waited for
        if int(call("cudaStreamIsCapturing", handle)):
            raise EngineError(
                f"{name} records a CUDA graph, and an inference is one already", "call infer_device outside of the capture"
            )
