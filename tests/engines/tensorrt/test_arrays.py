"""GPU arrays are recognised by both protocols; the DLPack reader is held against real producers, NumPy and PyTorch."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from gmf_edge.engines.tensorrt.arrays import ALIGNMENT, DeviceView, _DLTensor, device_view, is_device_array
from gmf_edge.engines.tensorrt.cuda import LEGACY_STREAM, Stream
from gmf_edge.engines.tensorrt.cuda_context import CudaContext
from gmf_edge.errors import EngineError


class OnGpu:
    """Hands out another library's capsule and says that it lies on a GPU: the layout of a capsule does not depend on the device."""

    def __init__(self, producer: Any, number: int = 0) -> None:
        self.producer, self.number, self.streams = producer, number, list[Any]()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.number

    def __dlpack__(self, stream: Any = None) -> Any:
        self.streams.append(stream)
        return self.producer.__dlpack__()


class RecordingStream:
    handle = 77

    def __init__(self) -> None:
        self.waited: list[int] = []

    def wait_for(self, producer: int) -> None:
        self.waited.append(producer)


class AnyPlace:
    """A context that every address and stream belongs to."""

    device = 0

    def check_pointer(self, pointer: int, name: str) -> None:
        pass

    def check_stream(self, handle: int, name: str) -> None:
        pass

    on_other_device = CudaContext.on_other_device


def view_of(value: Any, stream: Any = None, **options: Any) -> DeviceView:
    return device_view(value, cast(CudaContext, AnyPlace()), cast(Stream, stream or RecordingStream()), "images", **options)


def aligned(values: Any) -> Any:
    """The values at an address that TensorRT takes."""
    raw = np.zeros(values.nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    found = raw[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    found[:] = values
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_numpy_capsule_is_read(dtype: str) -> None:
    values = aligned(np.arange(24, dtype=dtype).reshape(2, 3, 4))
    view = view_of(OnGpu(values))
    assert (view.pointer, view.shape, view.dtype) == (values.ctypes.data, (2, 3, 4), np.dtype(dtype))
    assert view.nbytes == values.nbytes


def test_a_torch_capsule_is_read_with_its_offset() -> None:
    torch = pytest.importorskip("torch")
    whole = torch.from_numpy(aligned(np.arange(256, dtype=np.float32).reshape(4, 8, 8)))
    values = whole[2:]
    view = view_of(OnGpu(values))
    assert view.pointer == values.data_ptr()
    assert view.pointer == whole.data_ptr() + 2 * 64 * 4
    assert view.shape == (2, 8, 8)


def test_a_byte_offset_is_added() -> None:
    """NumPy and PyTorch put it into the pointer; the protocol allows a producer to tell it apart."""
    shape = (ctypes.c_int64 * 2)(1, 3)
    tensor = _DLTensor(data=4096, device_type=2, ndim=2, code=2, bits=32, lanes=1, shape=shape, strides=None, byte_offset=256)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    capsule = new(ctypes.addressof(tensor), b"dltensor", None)
    view = view_of(OnGpu(SimpleNamespace(__dlpack__=lambda: capsule)))
    assert (view.pointer, view.shape) == (4352, (1, 3))


def test_the_producer_is_asked_to_make_our_stream_wait() -> None:
    producer = OnGpu(aligned(np.zeros((1, 2), np.float32)))
    view_of(producer)
    assert producer.streams == [RecordingStream.handle]


def test_a_producer_on_another_gpu_is_not_asked() -> None:
    producer = OnGpu(aligned(np.zeros((1, 2), np.float32)), number=1)
    with pytest.raises(EngineError, match="images lies on GPU 1, the engine on GPU 0"):
        view_of(producer)
    assert producer.streams == []


def test_an_address_that_tensorrt_does_not_take_is_refused() -> None:
    values = aligned(np.zeros((4, 4), np.float32))
    with pytest.raises(EngineError, match=r"images starts at an address that is not a multiple of 256 bytes.*array of its own"):
        view_of(OnGpu(values[1:]))


def test_a_read_only_array_is_not_written() -> None:
    interface = {"shape": (1, 4), "typestr": "<f4", "data": (4096, True), "version": 3}
    array = SimpleNamespace(__cuda_array_interface__=interface)
    assert view_of(array).pointer == 4096
    with pytest.raises(EngineError, match="images is read-only"):
        view_of(array, is_written=True)


def test_the_view_keeps_the_memory_alive() -> None:
    import gc
    import weakref

    values = aligned(np.zeros((4, 4), np.float32))
    alive = weakref.ref(values)
    view: DeviceView | None = view_of(OnGpu(values))
    del values
    gc.collect()
    assert alive() is not None
    view = None
    gc.collect()
    assert view is None
    assert alive() is None, "the view leaks the producer's memory"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((2, 3), np.float32).T, "not contiguous"),
        (np.zeros((4, 4), np.float32)[:, ::2], "not contiguous"),
        (np.zeros((2, 3), np.float64), "neither float32 nor float16"),
        (np.zeros((2, 3), np.int32), "neither float32 nor float16"),
    ],
)
def test_what_does_not_fit_is_refused(values: np.ndarray[Any, Any], message: str) -> None:
    with pytest.raises(EngineError, match=f"images .*{message}"):
        view_of(OnGpu(values))


def test_an_axis_of_one_may_have_any_stride() -> None:
    interface = {"shape": (1, 4), "typestr": "<f4", "data": (4096, False), "strides": (3996, 4), "version": 3}
    assert view_of(SimpleNamespace(__cuda_array_interface__=interface)).shape == (1, 4)


@pytest.mark.parametrize(
    ("told", "waited"), [({}, LEGACY_STREAM), ({"stream": None}, LEGACY_STREAM), ({"stream": 2}, 2), ({"stream": 4242}, 4242)]
)
def test_the_array_interface_tells_the_stream_to_wait_for(told: dict[str, Any], waited: int) -> None:
    interface = {"shape": (2, 2), "typestr": "<f4", "data": (4096, False), "version": 3, **told}
    ours = RecordingStream()
    view = view_of(SimpleNamespace(__cuda_array_interface__=interface), ours)
    assert (view.pointer, ours.waited) == (4096, [waited])


def test_host_arrays_are_no_device_arrays() -> None:
    assert not is_device_array(np.zeros(3))
    assert not is_device_array([1.0])
    assert is_device_array(OnGpu(np.zeros(3)))
    with pytest.raises(EngineError, match=r"images is a ndarray outside GPU memory; .*use infer"):
        view_of(np.zeros((1, 3), np.float32))
