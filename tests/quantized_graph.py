"""An INT8 graph without calibration: the Q/DQ that the packaged rules place, with made-up ranges."""

from __future__ import annotations

import onnx_ir

from gmf_edge.precision.fp16 import head_islands
from gmf_edge.precision.int8 import insert_qdq
from gmf_edge.precision.int8_layers import quantizable_layers
from gmf_edge.precision.ranges import Provenance, Ranges, TensorRange
from gmf_edge.precision.recipe import Recipe


def quantized(fused: onnx_ir.Model, scales: str) -> onnx_ir.Model:
    """The fused graph with Q/DQ and made-up ranges."""
    recipe = Recipe(method="minmax", bias_correction=False)
    tensors = {layer.tensor: TensorRange(4.0, 4.0, (), ()) for layer in quantizable_layers(fused)}
    provenance = Provenance("", None, "", {}, "minmax", recipe.smoothing, recipe.proj_smoothing, 1, 0)
    head = frozenset(head_islands(fused)) if scales == "float16" else frozenset()
    return insert_qdq(fused, Ranges(provenance, tensors, {}), recipe, scales=scales, fp32_layers=head)
