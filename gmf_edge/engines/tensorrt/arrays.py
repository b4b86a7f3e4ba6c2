"""Arrays that already lie in GPU memory, of any library, without a copy and without importing that library.

Two protocols tell where an array lies:
  DLPack                     PyTorch, CuPy, JAX: obj.__dlpack__(stream=...) also makes our stream wait for the producer's work
  __cuda_array_interface__   PyCUDA, CuPy, Numba, PyTorch: pointer, shape and type as a dictionary; from version 3 with a stream
DLPack is asked first, because only it always says when the data is ready. Sources: dmlc/dlpack, dlpack.h (DLManagedTensor,
unversioned), and Numba's description of the CUDA array interface, versions 0 to 3; NvInferRuntime.h, setTensorAddress, for alignment.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gmf_edge.engines.tensorrt.cuda import LEGACY_STREAM, Stream
from gmf_edge.engines.tensorrt.cuda_context import CudaContext
from gmf_edge.errors import EngineError

_DL_CUDA, _DL_CUDA_MANAGED = 2, 13
# DLDataTypeCode: 0 signed, 1 unsigned, 2 floating
_DL_TYPES = {(2, 32): "float32", (2, 16): "float16"}
# TensorRT: "The pointer must have at least 256-byte alignment"
ALIGNMENT = 256


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


@dataclass(frozen=True)
class DeviceView:
    """Where an array lies; `owner` keeps its memory alive.

    Attributes:
        pointer: device address of the first element.
        shape: elements per axis, C order.
        dtype: of the elements.
        owner: whatever holds the memory.
        stream: handle of the stream that still writes it, or None where it is complete.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: Any
    stream: int | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """For torch.as_tensor(view, device="cuda"), cupy.asarray(view), numba.cuda.as_cuda_array(view) and PyCUDA."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "version": 3,
            "stream": self.stream,
        }


def is_device_array(value: Any) -> bool:
    """Whether the value says that it lies in GPU memory."""
    if hasattr(value, "__dlpack_device__"):
        return int(value.__dlpack_device__()[0]) in (_DL_CUDA, _DL_CUDA_MANAGED)
    return hasattr(value, "__cuda_array_interface__")


def device_view(value: Any, place: CudaContext, stream: Stream, name: str, is_written: bool = False) -> DeviceView:
    """Where an array lies; later work on `stream` waits for what its library has under way on it.

    Args:
        value: the array.
        place: the context that will use it.
        stream: of that context.
        name: of the array, for errors.
        is_written: it is written to, which a read-only array does not allow.

    Raises:
        EngineError: it is not in GPU memory, on another GPU or of another CUDA context, not contiguous, not floating, not aligned as
            TensorRT needs it, or read-only although it is written to.
    """
    # a PyTorch tensor that tracks gradients refuses both protocols
    if getattr(value, "requires_grad", False):
        value = value.detach()
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__") and is_device_array(value):
        # before the producer is asked to order its work with a stream of another GPU
        device = int(value.__dlpack_device__()[1])
        if device != place.device:
            raise place.on_other_device(name, device)
        view = _from_dlpack(value, stream, name)
        place.check_pointer(view.pointer, name)
    elif hasattr(value, "__cuda_array_interface__"):
        view = _from_cuda_array_interface(value, name, is_written)
        place.check_pointer(view.pointer, name)
        # versions before 3 name no stream, and Numba says None for arrays of its default stream: the legacy default stream waits for
        # all blocking streams, PyCUDA's and PyTorch's default streams among them; work on a non-blocking stream must be synchronised
        # by the caller
        producer = view.stream or LEGACY_STREAM
        place.check_stream(producer, f"the stream of {name}")
        stream.wait_for(producer)
    else:
        raise EngineError(
            f"{name} is a {type(value).__name__} outside GPU memory",
            "give an array of PyTorch (cuda), CuPy, PyCUDA or Numba; for NumPy arrays use infer",
        )
    if view.pointer % ALIGNMENT:
        raise EngineError(
            f"{name} starts at an address that is not a multiple of {ALIGNMENT} bytes, which TensorRT needs",
            "give an array of its own instead of a part of another",
        )
    return view


def _from_dlpack(value: Any, stream: Stream, name: str) -> DeviceView:
    # the producer makes our stream wait for its work
    capsule = value.__dlpack__(stream=stream.handle)
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    # the capsule is not consumed: it keeps its name, so its own destructor releases the tensor when the view is gone
    tensor = _DLTensor.from_address(pointer_of(capsule, b"dltensor"))
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    strides = tuple(tensor.strides[axis] for axis in range(tensor.ndim)) if tensor.strides else None
    dtype = _DL_TYPES.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    if dtype is None:
        raise EngineError(f"{name} has a type that is neither float32 nor float16", "convert it on the GPU first")
    _check_contiguous(shape, strides, 1, name)
    return DeviceView(int(tensor.data or 0) + int(tensor.byte_offset), shape, np.dtype(dtype), (value, capsule))


def _from_cuda_array_interface(value: Any, name: str, is_written: bool) -> DeviceView:
    interface = value.__cuda_array_interface__
    shape = tuple(int(size) for size in interface["shape"])
    dtype = np.dtype(interface["typestr"])
    if dtype not in (np.dtype("float32"), np.dtype("float16")):
        raise EngineError(f"{name} has type {dtype}, neither float32 nor float16", "convert it on the GPU first")
    _check_contiguous(shape, interface.get("strides"), dtype.itemsize, name)
    pointer, is_read_only = interface["data"]
    if is_written and is_read_only:
        raise EngineError(f"{name} is read-only", "give an array that may be written")
    return DeviceView(int(pointer), shape, dtype, value, interface.get("stream"))


def _check_contiguous(shape: Sequence[int], strides: Sequence[int] | None, unit: int, name: str) -> None:
    """`unit` is what one element counts in strides: 1 in DLPack, its size in bytes elsewhere."""
    expected = unit
    for size, stride in reversed(list(zip(shape, strides if strides is not None else shape, strict=True))):
        if strides is not None and size != 1 and stride != expected:
            raise EngineError(
                f"{name} is not contiguous (strides {tuple(strides)} for shape {tuple(shape)})", "make it contiguous first"
            )
        expected *= size
