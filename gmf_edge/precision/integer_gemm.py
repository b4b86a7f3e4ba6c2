"""MatMul(x_q, W_q) + b -> Reshape, Gemm(x_q, W_q, b_q), Reshape: INT8 Linears for ONNX Runtime's CPU kernels, bias inside.

ONNX Runtime fuses Q/DQ round a MatMul into MatMulIntegerToFloat, and the bias stays an Add that reads and writes the whole result
again. Round a Gemm it is QGemm, whose INT32 sums start from the bias: b_q = round(b / (s * s_k)) with the scales s of x and s_k of
column k of W. For ONNX Runtime alone: TensorRT wants biases in floating point.

The weights' codes become UINT8 with zero point 128, the same numbers. On x86 without VNNI the kernel for INT8 weights adds pairs of
products in 16 bits and saturates; the one for UINT8 does not. With VNNI both are the same kernel. Source: ONNX Runtime, Quantize ONNX
Models; MLAS.

What the rounding of b adds to an output is at most half of s * s_k, which is what one product of two INT8 codes of 1 is worth.
"""

from __future__ import annotations

import numpy as np
import onnx_ir
from onnx_ir import DataType

from gmf_edge.ops.graph_parts import new_constant
from gmf_edge.precision.int8_layers import constant_array, independent_copy

INT32_LIMIT = 2**31 - 1
UINT8_ZERO = 128


def linears_as_gemm(graph: onnx_ir.Model) -> tuple[onnx_ir.Model, int]:
    """A copy of a graph with Q/DQ whose INT8 Linears are Gemms, and how many there are.

    A Linear stays as it is where it has no bias, where its input is shared or its number of tokens is not fixed, or where a bias
    does not fit INT32.

    Args:
        graph: what insert_qdq returns, with FP32 scales; left as it is.
    """
    lowered = independent_copy(graph)
    changed = sum(_as_gemm(lowered, node) for node in list(lowered.graph) if node.op_type == "MatMul")
    return lowered, changed


def _as_gemm(graph: onnx_ir.Model, node: onnx_ir.Node) -> bool:
    """Replace one MatMul and its Add; False where it has to stay."""
    activation, weight = (_producer(value, "DequantizeLinear") for value in node.inputs)
    if activation is None or weight is None or len(activation.outputs[0].uses()) != 1:
        return False
    quantize = _producer(activation.inputs[0], "QuantizeLinear")
    uses = list(node.outputs[0].uses())
    if quantize is None or len(quantize.outputs[0].uses()) != 1 or len(uses) != 1 or uses[0].node.op_type != "Add":
        return False
    add = uses[0].node
    bias_value = add.inputs[1 - uses[0].idx]
    x = quantize.inputs[0]
    if bias_value is None or bias_value.const_value is None or x is None or x.shape is None or len(x.shape) != 3:
        return False
    tokens = x.shape[1]
    inputs, outputs = constant_array(weight.inputs[0]).shape
    step = constant_array(activation.inputs[1]).astype(np.float64) * constant_array(weight.inputs[1]).astype(
        np.float64
    )  # [outputs]
    codes = np.rint(constant_array(bias_value).astype(np.float64) / step)
    if not isinstance(tokens, int) or codes.shape != (outputs,) or not (np.abs(codes) <= INT32_LIMIT).all():
        return False

    name = node.name or str(node.outputs[0].name)
    flat = _node(graph, node, "Reshape", (x, _sizes(graph, (-1, inputs))), f"{name}/flat")
    quantize.replace_input_with(0, flat)
    # a node has to follow those that it reads
    graph.graph.remove(quantize)
    graph.graph.remove(activation)
    graph.graph.insert_before(node, (quantize, activation))
    quantize.outputs[0].shape = activation.outputs[0].shape = None
    _as_unsigned(graph, quantize, activation)
    bias_inputs = (
        new_constant(graph, codes.astype(np.int32), f"{name}/bias/int32"),
        new_constant(graph, step.astype(np.float32), f"{name}/bias/scale"),
        new_constant(graph, np.zeros(outputs, np.int32), f"{name}/bias/zero_point"),
    )
    bias = _node(graph, node, "DequantizeLinear", bias_inputs, f"{name}/bias/DequantizeLinear", axis=0)
    unsigned = _unsigned_weight(graph, node, weight, f"{name}/weight/uint8")
    product = _node(graph, node, "Gemm", (node.inputs[0], unsigned, bias), f"{name}/Gemm")
    result = _node(graph, node, "Reshape", (product, _sizes(graph, (-1, tokens, outputs))), f"{name}/tokens")
    result.shape = add.outputs[0].shape
    add.outputs[0].replace_all_uses_with(result)
    graph.graph.remove(add, safe=True)
    graph.graph.remove(node, safe=True)
    unread = [bias_value]
    if not weight.outputs[0].uses():
        unread += [weight.inputs[0], weight.inputs[2]]
        graph.graph.remove(weight, safe=True)
    for value in unread:
        if value is not None and not value.uses() and value.name in graph.graph.initializers:
            del graph.graph.initializers[value.name]
    return True


def _as_unsigned(graph: onnx_ir.Model, quantize: onnx_ir.Node, dequantize: onnx_ir.Node) -> None:
    """INT8 activations with zero point 0 -> UINT8 with zero point 128, code for code the same values.

    x86 multiplies UINT8 by INT8. ONNX Runtime makes this change itself, but not where several Gemms read one activation.
    """
    zero_point = new_constant(graph, np.asarray(UINT8_ZERO, np.uint8), "zero_point/uint8")
    for node in (quantize, dequantize):
        node.replace_input_with(2, zero_point)
    quantize.outputs[0].dtype = DataType.UINT8


def _unsigned_weight(graph: onnx_ir.Model, before: onnx_ir.Node, dequantize: onnx_ir.Node, name: str) -> onnx_ir.Value:
    """The weight that a DequantizeLinear gives of INT8 codes per column, now from UINT8 codes."""
    signed = dequantize.inputs[:3]
    codes = constant_array(signed[0]).astype(np.int16) - constant_array(signed[2]).astype(np.int16)  # [inputs, outputs]
    inputs = (
        new_constant(graph, (codes + UINT8_ZERO).astype(np.uint8), f"{name}/codes"),
        signed[1],
        new_constant(graph, np.full(codes.shape[1], UINT8_ZERO, np.uint8), f"{name}/zero_point"),
    )
    return _node(graph, before, "DequantizeLinear", inputs, f"{name}/DequantizeLinear", axis=1)


def _producer(value: onnx_ir.Value | None, op_type: str) -> onnx_ir.Node | None:
    producer = None if value is None else value.producer()
    return producer if producer is not None and producer.op_type == op_type else None


def _sizes(graph: onnx_ir.Model, sizes: tuple[int, ...]) -> onnx_ir.Value:
    return new_constant(graph, np.asarray(sizes, np.int64), f"sizes/{'x'.join(map(str, sizes))}")


def _node(
    graph: onnx_ir.Model,
    before: onnx_ir.Node,
    op_type: str,
    inputs: tuple[onnx_ir.Value | None, ...],
    name: str,
    **attributes: int,
) -> onnx_ir.Value:
    """Insert a node that returns FP32; its output."""
    node = onnx_ir.node(op_type, inputs, attributes=attributes, name=name)
    node.outputs[0].name, node.outputs[0].dtype = f"{name}/output", DataType.FLOAT
    graph.graph.insert_before(before, node)
    return node.outputs[0]
