"""cuda.bindings.driver beside cuda_fake: the calling thread's context, and whose a pointer or a stream is.

cuPointerGetAttribute and cuStreamGetCtx as NVIDIA documents them: memory of a pool or mapped by hand belongs to no context, a pointer
that CUDA does not know is an invalid value.
"""

from __future__ import annotations

from enum import IntEnum
from types import ModuleType
from typing import Any

from cuda_fake import FakeCuda
from fake_gpu import Handle


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_INVALID_HANDLE = 400


class CUpointer_attribute(IntEnum):
    CU_POINTER_ATTRIBUTE_CONTEXT = 1
    CU_POINTER_ATTRIBUTE_MEMORY_TYPE = 2
    CU_POINTER_ATTRIBUTE_IS_MANAGED = 8
    CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9


class FakeDriver(ModuleType):
    """The module; `pool` holds addresses of allocations that belong to a device and to no context."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__("cuda.bindings.driver")
        self.cuda = cuda
        self.pool: set[int] = set()
        self.CUpointer_attribute = CUpointer_attribute

    def cuCtxGetCurrent(self) -> tuple[Any, ...]:
        return CUresult.CUDA_SUCCESS, Handle(getattr(self.cuda.thread, "context", 0))

    def cuCtxSetCurrent(self, context: Any) -> tuple[Any, ...]:
        handle = int(context)
        if handle and handle not in self.cuda.contexts:
            return (CUresult.CUDA_ERROR_INVALID_CONTEXT,)
        self.cuda.thread.context = handle
        return (CUresult.CUDA_SUCCESS,)

    def cuStreamGetCtx(self, stream: Any) -> tuple[Any, ...]:
        found = self.cuda.streams.get(int(stream))
        return (CUresult.CUDA_ERROR_INVALID_HANDLE, None) if found is None else (CUresult.CUDA_SUCCESS, Handle(found.context))

    def cuPointerGetAttribute(self, attribute: CUpointer_attribute, pointer: int) -> tuple[Any, ...]:
        found = self.cuda.allocation_of(pointer)
        if found is None:
            return CUresult.CUDA_ERROR_INVALID_VALUE, None
        pooled = any(self.cuda.allocation_of(address) is found for address in self.pool)
        if attribute == CUpointer_attribute.CU_POINTER_ATTRIBUTE_CONTEXT:
            return CUresult.CUDA_SUCCESS, Handle(0 if pooled else found.context)
        if attribute == CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
            return CUresult.CUDA_SUCCESS, 1 if found.on_host else 2
        if attribute == CUpointer_attribute.CU_POINTER_ATTRIBUTE_IS_MANAGED:
            return CUresult.CUDA_SUCCESS, 0
        return CUresult.CUDA_SUCCESS, found.device
