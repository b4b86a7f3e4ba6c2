"""What goes in and out of an engine: "images" [B, 3, H, W] and "logits" [B, classes]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gmf_edge.engines.tensorrt.options import INPUT_NAME, OUTPUT_NAME
from gmf_edge.engines.tensorrt.sidecar import REBUILD
from gmf_edge.errors import EngineError
from gmf_edge.spec import BatchProfile

if TYPE_CHECKING:
    import tensorrt as trt


@dataclass(frozen=True)
class EngineIO:
    """Shapes and types of an engine's two tensors.

    Attributes:
        profile: accepted batch sizes.
        image_shape: (3, H, W).
        classes: width of the logits.
        input_dtype, output_dtype: float32 or float16.
    """

    profile: BatchProfile
    image_shape: tuple[int, int, int]
    classes: int
    input_dtype: np.dtype[Any]
    output_dtype: np.dtype[Any]

    @property
    def image_bytes(self) -> int:
        """Size of one image in the engine's input type."""
        channels, height, width = self.image_shape
        return channels * height * width * self.input_dtype.itemsize

    @property
    def logit_bytes(self) -> int:
        """Size of one image's logits in the engine's output type."""
        return self.classes * self.output_dtype.itemsize

    def batch_of(self, shape: tuple[int, ...]) -> int:
        """The batch size of images of that shape.

        Raises:
            EngineError: the engine does not take them.
        """
        profile, wanted = self.profile, self.image_shape
        if len(shape) != 4 or tuple(shape[1:]) != wanted:
            raise EngineError(f"images have shape {tuple(shape)}", f"this engine takes [B, {', '.join(map(str, wanted))}]")
        if not profile.min <= shape[0] <= profile.max:
            raise EngineError(
                f"a batch of {shape[0]} is outside the engine's profile {profile.min}..{profile.max}",
                "split the batch, or build with other --min-batch and --max-batch",
            )
        return shape[0]

    @classmethod
    def of(cls, engine: trt.ICudaEngine) -> EngineIO:
        """Of a deserialised engine.

        Raises:
            EngineError: it is not one of this project's: other tensors, or other types.
        """
        import tensorrt as trt

        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        if sorted(names) != sorted((INPUT_NAME, OUTPUT_NAME)):
            raise EngineError(f"the engine's tensors are {', '.join(names)}, not {INPUT_NAME} and {OUTPUT_NAME}", REBUILD)
        types: dict[trt.DataType, np.dtype[Any]] = {
            trt.DataType.FLOAT: np.dtype(np.float32),
            trt.DataType.HALF: np.dtype(np.float16),
        }
        dtypes = []
        for name in (INPUT_NAME, OUTPUT_NAME):
            dtype = engine.get_tensor_dtype(name)
            if dtype not in types:
                raise EngineError(f"the engine's {name} has type {dtype}, neither FLOAT nor HALF", REBUILD)
            dtypes.append(types[dtype])
        _, channels, height, width = engine.get_tensor_shape(INPUT_NAME)
        classes = engine.get_tensor_shape(OUTPUT_NAME)[1]
        return cls(_profile_of(engine), (int(channels), int(height), int(width)), int(classes), dtypes[0], dtypes[1])


def _profile_of(engine: trt.ICudaEngine) -> BatchProfile:
    low, opt, high = engine.get_tensor_profile_shape(INPUT_NAME, 0)
    return BatchProfile(int(low[0]), int(opt[0]), int(high[0]))
