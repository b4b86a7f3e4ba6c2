"""GPU arrays are recognised by both protocols; the DLPack reader is held against real producers, NumPy and PyTorch."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from gmf_edge.engines.tensorrt.arrays import DeviceView, _DLTensor, device_view, is_device_array
from gmf_edge.engines.tensorrt.cuda import LEGACY_STREAM, Stream
from gmf_edge.errors import EngineError


class OnGpu:
    """Hands out another library's capsule and says that it lies on a GPU: the layout of a capsule does not depend on the device."""

    def __init__(self, producer: Any, device: int = 2) -> None:
        self.producer, self.device, self.streams = producer, device, list[Any]()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self, stream: Any = None) -> Any:
        self.streams.append(stream)
        return self.producer.__dlpack__()


class RecordingStream:
    handle = 77

    def __init__(self) -> None:
        self.waited: list[int] = []

    def wait_for(self, producer: int) -> None:
        self.waited.append(producer)


def stream() -> Any:
    return cast(Stream, RecordingStream())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_numpy_capsule_is_read(dtype: str) -> None:
    values = np.arange(24, dtype=dtype).reshape(2, 3, 4)
    view = device_view(OnGpu(values), stream(), "images")
    assert (view.pointer, view.shape, view.dtype) == (values.ctypes.data, (2, 3, 4), np.dtype(dtype))
    assert view.nbytes == values.nbytes


def test_a_torch_capsule_is_read_with_its_offset() -> None:
    torch = pytest.importorskip("torch")
    values = torch.arange(48, dtype=torch.float32).reshape(4, 3, 4)[2:]
    view = device_view(OnGpu(values), stream(), "images")
    assert view.pointer == values.data_ptr()
    assert view.shape == (2, 3, 4)


def test_a_byte_offset_is_added() -> None:
    """NumPy and PyTorch put it into the pointer; the protocol allows a producer to tell it apart."""
    shape = (ctypes.c_int64 * 2)(1, 3)
    tensor = _DLTensor(data=4096, device_type=2, ndim=2, code=2, bits=32, lanes=1, shape=shape, strides=None, byte_offset=64)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    capsule = new(ctypes.addressof(tensor), b"dltensor", None)
    view = device_view(OnGpu(SimpleNamespace(__dlpack__=lambda: capsule)), stream(), "images")
    assert (view.pointer, view.shape) == (4160, (1, 3))


def test_the_producer_is_asked_to_make_our_stream_wait() -> None:
    producer = OnGpu(np.zeros((1, 2), np.float32))
    device_view(producer, stream(), "images")
    device_view(producer, None, "images")
    # 77: our stream; -1: the caller's own stream is used throughout, nothing to wait for
    assert producer.streams == [77, -1]


def test_the_view_keeps_the_memory_alive() -> None:
    import gc
    import weakref

    values = np.zeros((4, 4), np.float32)
    alive = weakref.ref(values)
    view: DeviceView | None = device_view(OnGpu(values), stream(), "images")
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
        device_view(OnGpu(values), stream(), "images")


def test_an_axis_of_one_may_have_any_stride() -> None:
    values = np.lib.stride_tricks.as_strided(np.zeros(8, np.float32), (1, 4), (999 * 4, 4))
    interface = {"shape": (1, 4), "typestr": "<f4", "data": (values.ctypes.data, False), "strides": (3996, 4), "version": 3}
    assert device_view(SimpleNamespace(__cuda_array_interface__=interface), stream(), "images").shape == (1, 4)


@pytest.mark.parametrize(
    ("told", "waited"), [({}, LEGACY_STREAM), ({"stream": None}, LEGACY_STREAM), ({"stream": 2}, 2), ({"stream": 4242}, 4242)]
)
def test_the_array_interface_tells_the_stream_to_wait_for(told: dict[str, Any], waited: int) -> None:
    interface = {"shape": (2, 2), "typestr": "<f4", "data": (4096, False), "version": 3, **told}
    ours = RecordingStream()
    view = device_view(SimpleNamespace(__cuda_array_interface__=interface), cast(Stream, ours), "images")
    assert (view.pointer, ours.waited) == (4096, [waited])


def test_host_arrays_are_no_device_arrays() -> None:
    assert not is_device_array(np.zeros(3))
    assert not is_device_array([1.0])
    assert is_device_array(OnGpu(np.zeros(3)))
    with pytest.raises(EngineError, match=r"images is a ndarray outside GPU memory; .*use infer"):
        device_view(np.zeros((1, 3), np.float32), stream(), "images")
