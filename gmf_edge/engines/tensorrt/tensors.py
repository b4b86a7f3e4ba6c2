"""What goes in and out of an engine: "images" [B, 3, H, W], and "logits" [B, classes] or the maps of four stages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gmf_edge.engines.protocol import require_images
from gmf_edge.engines.tensorrt.sidecar import REBUILD
from gmf_edge.errors import EngineError
from gmf_edge.spec import IMAGES, LOGITS, MAPS, STAGE_STRIDES, BatchProfile, SizeRange, Task

if TYPE_CHECKING:
    import tensorrt as trt


@dataclass(frozen=True)
class OutputTensor:
    """One output of an engine.

    Attributes:
        name: LOGITS or one of MAPS.
        dtype: float32 or float16.
        channels: classes of logits, C of a map.
        stride: of a map; 0 of logits, which have no height and width.
    """

    name: str
    dtype: np.dtype[Any]
    channels: int
    stride: int

    def shape(self, image_size: tuple[int, int]) -> tuple[int, ...]:
        """Of one image's: (classes,) or (C, H / stride, W / stride)."""
        return (self.channels, *(side // self.stride for side in image_size)) if self.stride else (self.channels,)

    def bytes_of(self, image_size: tuple[int, int]) -> int:
        """Size of one image's."""
        return math.prod(self.shape(image_size)) * self.dtype.itemsize


@dataclass(frozen=True)
class EngineIO:
    """Shapes and types of an engine's tensors.

    Attributes:
        profile: accepted batch sizes.
        image_shape: (3, H, W); of an engine of several image sizes, those it is tuned for.
        input_dtype: float32 or float16.
        outputs: in the order of LOGITS or MAPS.
        sizes: accepted image sizes, or None for that of image_shape alone.
    """

    profile: BatchProfile
    image_shape: tuple[int, int, int]
    input_dtype: np.dtype[Any]
    outputs: tuple[OutputTensor, ...]
    sizes: SizeRange | None = None

    @property
    def task(self) -> Task:
        """What comes out."""
        return Task.CLASSIFY if self.outputs[0].name == LOGITS else Task.FEATURES

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of image_shape."""
        return self.image_shape[1], self.image_shape[2]

    @property
    def largest_size(self) -> tuple[int, int]:
        """(H, W) that buffers must hold."""
        return self.image_size if self.sizes is None else self.sizes.max

    @property
    def classes(self) -> int:
        """Width of a classifier's logits."""
        return self.outputs[0].channels

    @property
    def output_dtype(self) -> np.dtype[Any]:
        """Of all outputs."""
        return self.outputs[0].dtype

    def image_bytes(self, image_size: tuple[int, int]) -> int:
        """Size of one image in the engine's input type."""
        return self.image_shape[0] * math.prod(image_size) * self.input_dtype.itemsize

    def batch_of(self, shape: tuple[int, ...]) -> int:
        """The batch size of images of that shape.

        Raises:
            EngineError: the engine does not take them.
        """
        require_images(tuple(shape), self.image_shape, self.sizes, self.profile)
        return shape[0]

    @classmethod
    def of(cls, engine: trt.ICudaEngine) -> EngineIO:
        """Of a deserialised engine.

        Raises:
            EngineError: it is not one of this project's: other tensors, or other types.
        """
        import tensorrt as trt

        names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        wanted = (LOGITS,) if LOGITS in names else MAPS
        if names != {IMAGES, *wanted}:
            listed = ", ".join(sorted(names))
            raise EngineError(
                f"the engine's tensors are {listed}, not {IMAGES} and {LOGITS} or the maps {', '.join(MAPS)}", REBUILD
            )
        types: dict[trt.DataType, np.dtype[Any]] = {
            trt.DataType.FLOAT: np.dtype(np.float32),
            trt.DataType.HALF: np.dtype(np.float16),
        }
        dtypes = {}
        for name in (IMAGES, *wanted):
            dtype = engine.get_tensor_dtype(name)
            if dtype not in types:
                raise EngineError(f"the engine's {name} has type {dtype}, neither FLOAT nor HALF", REBUILD)
            dtypes[name] = types[dtype]
        low, opt, high = (tuple(map(int, shape)) for shape in engine.get_tensor_profile_shape(IMAGES, 0))
        strides = (0,) if wanted == (LOGITS,) else STAGE_STRIDES
        outputs = tuple(
            OutputTensor(name, dtypes[name], int(engine.get_tensor_shape(name)[1]), stride)
            for name, stride in zip(wanted, strides, strict=True)
        )
        return cls(
            profile=BatchProfile(low[0], opt[0], high[0]),
            image_shape=(opt[1], opt[2], opt[3]),
            input_dtype=dtypes[IMAGES],
            outputs=outputs,
            sizes=None if low[2:] == high[2:] else SizeRange((low[2], low[3]), (opt[2], opt[3]), (high[2], high[3])),
        )
