"""2-fused.onnx -> 3-<precision>.onnx: the one place that turns a requested precision into a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from gmf_edge.precision.fp16 import to_fp16
from gmf_edge.precision.fp16_range import activation_ranges, islands_for
from gmf_edge.spec import Precision


def lower_precision(
    fused: onnx_ir.Model,
    precision: Precision,
    io_dtype: str,
    inline: Callable[[onnx_ir.Model], onnx_ir.Model],
    batches: Iterable[NDArray[np.float32]],
) -> Mapping[str, Any]:
    """Lower a fused FP32 graph in place.

    Args:
        fused: with GmfGroupMixAttention nodes and their body.
        precision: of the heavy layers.
        io_dtype: "float32" or "float16", of input and output.
        inline: fused graph -> portable graph.
        batches: preprocessed images for the range check, float32 [B, 3, H, W].

    Returns:
        What was found and done, plain values for the manifest: "ranges" (fp16_range.RangeReport), "islands", "overflowing_weights",
        "flushed_weights" (fp16.Fp16Report).

    Raises:
        PrecisionError: activations that are not finite.
    """
    if precision is Precision.FP32:
        if io_dtype == "float16":
            every_node = {str(node.name): "FP32 was asked for" for node in fused.graph}
            return to_fp16(fused, every_node, io_dtype).to_json() | {"islands": {}}
        return {}
    ranges = activation_ranges(inline(fused), batches)
    report = to_fp16(fused, islands_for(fused, ranges.beyond), io_dtype)
    return {"ranges": ranges.to_json(), **report.to_json()}
