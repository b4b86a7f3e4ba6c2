"""Arrays of other libraries in the made-up GPU memory of cuda_fake, and what their libraries do with them on their streams."""

from __future__ import annotations

from typing import Any

import numpy as np
from cuda_fake import FakeCuda
from fake_gpu import Work


class GpuArray:
    """What PyCUDA's GPUArray shows: __cuda_array_interface__ only; with `stream`, what CuPy's and Numba's show."""

    def __init__(self, cuda: FakeCuda, values: np.ndarray[Any, Any], **more: Any) -> None:
        self.shape, self.dtype, self.more, self.cuda = values.shape, values.dtype, more, cuda
        pointer = cuda.allocate(values.nbytes)
        assert pointer is not None
        self.pointer = pointer
        self.values = np.frombuffer(memoryview(cuda.memory[pointer]), values.dtype).reshape(values.shape)
        self.values[:] = values
        self.strides: tuple[int, ...] | None = None

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        told = {"shape": self.shape, "typestr": self.dtype.str, "data": (self.pointer, False), "version": 2}
        return {**told, "strides": self.strides, **self.more}

    def write(self, stream: int, values: np.ndarray[Any, Any]) -> None:
        """A kernel of the caller, on a stream, that puts values there."""
        work = Work("the caller's producer", lambda: np.copyto(self.values, values), 1.0, writes=[(self.pointer, values.nbytes)])
        assert self.cuda.kernel(stream, work) == 0


class TorchTensor(GpuArray):
    """What PyTorch shows: __dlpack__, which makes the consumer's stream wait for the current one."""

    def __init__(self, cuda: FakeCuda, values: np.ndarray[Any, Any], current: int, device: int = 0) -> None:
        super().__init__(cuda, values)
        self.current, self.device = current, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device

    def __dlpack__(self, stream: int) -> Any:
        if stream != -1:
            _, event = self.cuda.cudaEventCreateWithFlags(2)
            self.cuda.cudaEventRecord(event, self.current)
            assert self.cuda.cudaStreamWaitEvent(stream, event, 0)[0] == 0
            self.cuda.cudaEventDestroy(event)
        return self.values.__dlpack__()


def read(cuda: FakeCuda, stream: int, told: dict[str, Any]) -> np.ndarray[Any, Any]:
    """What a consumer that keeps to the CUDA array interface finds, reading on its own stream."""
    pointer, size = told["data"][0], int(np.prod(told["shape"])) * np.dtype(told["typestr"]).itemsize
    if told["stream"] is not None:
        assert told["stream"] != 0, "the interface does not allow 0"
        _, event = cuda.cudaEventCreateWithFlags(2)
        cuda.cudaEventRecord(event, told["stream"])
        cuda.cudaStreamWaitEvent(stream, event, 0)
        cuda.cudaEventDestroy(event)
    found = np.full(told["shape"], np.nan, told["typestr"])

    def take() -> None:
        found[:] = np.frombuffer(memoryview(cuda.allocation_of(pointer).block), told["typestr"])[: found.size].reshape(found.shape)

    assert cuda.kernel(stream, Work("the caller's consumer", take, 0.1, reads=[(pointer, size)])) == 0
    cuda.cudaStreamSynchronize(stream)
    return found


def new_stream(cuda: FakeCuda, flags: int = 1) -> int:
    return int(cuda.cudaStreamCreateWithFlags(flags)[1])
