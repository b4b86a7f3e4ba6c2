"""MatMul(x, W) in FP16 -> Cast(MatMul(Cast(x), Cast(W))) through FP32: FP16 operands, FP32 sums, on a strongly typed runtime.

A strongly typed TensorRT may sum the products of an FP16 MatMul in FP16 (tactics named ..._f16f16_f16f16_f16). Between these casts it
may not, and it has kernels that read FP16 and sum in FP32, which it puts in the place of the four nodes; Torch-TensorRT's
use_fp32_acc asks by the same four nodes. W stays FP16 under a cast of its own: an FP32 weight would need an FP32 kernel.

Off by default, by measurement: with the weights of the packaged pico, in an emulation of FP16 sums over blocks of 16 products, it
leaves the logits' relative L2 error against FP32 at 2.3e-4, where the FP16 gate has 2.8e-2. The longest sum in these networks has 1280
products (fc2 of `small`).
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir
from onnx_ir import DataType

from gmf_edge.errors import SpecError
from gmf_edge.precision.half import insert_cast
from gmf_edge.precision.int8_layers import LINEAR_KINDS, quantizable_layers


def sum_in_fp32(graph: onnx_ir.Model, kinds: Collection[str]) -> list[str]:
    """Change the FP16 MatMuls of these kinds, in place; their names, in the graph's order.

    Linears that are FP32 already, or INT8 (whose sums are INT32), stay as they are.

    Args:
        graph: fused, lowered to FP16.
        kinds: of int8_layers.LINEAR_KINDS.

    Raises:
        SpecError: an unknown kind.
    """
    unknown = sorted(set(kinds) - set(LINEAR_KINDS))
    if unknown:
        raise SpecError(f"{unknown[0]!r} is no kind of Linear", f"use {', '.join(LINEAR_KINDS)}")
    changed = []
    for layer in quantizable_layers(graph):
        x, weight = layer.node.inputs[:2]
        assert x is not None
        assert weight is not None
        if layer.kind not in kinds or weight.dtype != DataType.FLOAT16 or x.dtype != DataType.FLOAT16:
            continue
        for index, (value, what) in enumerate(((x, "input"), (weight, "weight"))):
            wide = insert_cast(graph, value, DataType.FLOAT, layer.node, f"{layer.name}/{what}/to_float")
            layer.node.replace_input_with(index, wide)
        out = layer.node.outputs[0]
        narrow = onnx_ir.node("Cast", [out], attributes={"to": DataType.FLOAT16}, name=f"{layer.name}/to_float16")
        narrow.outputs[0].name, narrow.outputs[0].shape = f"{out.name}/float16", out.shape
        narrow.outputs[0].type = onnx_ir.TensorType(DataType.FLOAT16)
        out.replace_all_uses_with(narrow.outputs[0])
        narrow.replace_input_with(0, out)
        out.type = onnx_ir.TensorType(DataType.FLOAT)
        graph.graph.insert_after(layer.node, narrow)
        changed.append(layer.name)
    return changed
