"""FP32 graph -> half precision graph, FP16 or BF16: weights and activations of that type, with FP32 where the numerics need it.

What stays FP32 in both, and why:
softmax over tokens and the context    masses near 1/N: inside the body of GmfGroupMixAttention, by casts that are there in every precision
LayerNormalization                     squares of deviations leave FP16's range from 256 on, and eps 1e-6 is below its smallest normal;
                                       BF16 has the range, but 8 bits of a mean and of a variance are too few
the head (pooling and classifier)      a mean over H x W and the logits themselves; too small to cost anything

What more must stay FP32 in one of them is that type's own page: fp16.py, bf16.py.

How LayerNormalization is told depends on the runtime's typing (gmf_edge.spec.Target.typing). A strongly typed one computes in the
type of the operands: TensorRT 10 rejects INormalizationLayer::setComputePrecision there, all that stash_type could become, and 11 has
it no more (NvInfer.h of 10.3 and 11.1). Its graphs therefore cast x to FP32 and the result back, with FP32 gain and bias. A weakly
typed one, TensorRT 8.6, is told by stash_type 1, ONNX's default, which its importer passes on; casts would there be pins of the layers
beside them, so there are none.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir
from onnx_ir import DataType

from gmf_edge.errors import SpecError
from gmf_edge.ops.graph_parts import new_constant, set_body
from gmf_edge.ops.group_mix_attention import FLOAT_INPUTS, INPUT_NAMES, OP_TYPE, function_body

# share of a tensor's non-zero weights that become zero before the tensor is worth a word
FLUSHED_SHARE = 0.01
HEAD_OPS = ("GlobalAveragePool", "Flatten", "Gemm")
TYPINGS = ("strong", "weak")
IO_TYPES = {"float32": DataType.FLOAT, "float16": DataType.FLOAT16}


def to_half(
    graph: onnx_ir.Model, half: DataType, islands: Mapping[str, str], io_dtype: str = "float32", typing: str = "strong"
) -> dict[str, float]:
    """Lower a fused graph in place.

    Args:
        graph: FP32, fused (or with Q/DQ: a Quantize- or DequantizeLinear whose scale is FP32 stays FP32, one whose scale is of the
            half type computes in it).
        half: FLOAT16 or BFLOAT16.
        islands: names of nodes to leave in FP32, each with the reason; the head's are not added here.
        io_dtype: "float32" or "float16", dtype of input and outputs.
        typing: of the runtime, "strong" or "weak": how LayerNormalization is kept in FP32.

    Returns:
        Weight tensors of which more than 1 % of the non-zero values became zero, name -> share.

    Raises:
        SpecError: an unknown typing.
    """
    if typing not in TYPINGS:
        raise SpecError(f"typing {typing!r} is not known", f"use {' or '.join(TYPINGS)}")
    wide = {*islands, *(node_name(node) for node in graph.graph if _is_wide_by_itself(node, typing))}
    if typing == "weak":
        _norms_by_stash_type(graph)

    casts: dict[tuple[str, DataType], onnx_ir.Value] = {}
    weights: dict[str, onnx_ir.Value] = {}
    flushed: dict[str, float] = {}
    for node in list(graph.graph):
        in_fp32 = node_name(node) in wide
        wanted = DataType.FLOAT if in_fp32 else half
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in (DataType.FLOAT, half) or value.dtype == wanted:
                continue
            if value.const_value is not None and value.is_initializer():
                if value.dtype == DataType.FLOAT and not (typing == "strong" and _is_float_input(node, index)):
                    node.replace_input_with(index, _half_weight(graph, value, half, weights, flushed))
                continue
            key = (str(value.name), wanted)
            if key not in casts:
                casts[key] = insert_cast(graph, value, wanted, node, f"{value.name}/to_{wanted.name.lower()}")
            node.replace_input_with(index, casts[key])
        if not in_fp32 and node.op_type != "Cast":
            for value in node.outputs:
                if value.dtype == DataType.FLOAT:
                    # a new type object: clones of a graph share the old one
                    value.type = onnx_ir.TensorType(half)
    _set_io(graph, IO_TYPES[io_dtype])
    for name in [name for name, value in graph.graph.initializers.items() if not value.uses()]:
        del graph.graph.initializers[name]
    return flushed


def insert_cast(graph: onnx_ir.Model, value: onnx_ir.Value, dtype: DataType, before: onnx_ir.Node, name: str) -> onnx_ir.Value:
    """Cast a value before the node that is to read it; the cast value, "<name>/output"."""
    cast = onnx_ir.node("Cast", [value], attributes={"to": dtype}, name=name)
    result = cast.outputs[0]
    result.name, result.type, result.shape = f"{name}/output", onnx_ir.TensorType(dtype), value.shape
    graph.graph.insert_before(before, cast)
    return result


def node_name(node: onnx_ir.Node) -> str:
    """The node's name, or its first output's where it has none."""
    return node.name or str(node.outputs[0].name)


def head_islands(graph: onnx_ir.Model) -> dict[str, str]:
    """The pooling and the classifier: name -> reason."""
    return {node_name(node): "pooling and logits" for node in graph.graph if node.op_type in HEAD_OPS}


def fp32_statistics(graph: onnx_ir.Model, islands: Mapping[str, str]) -> tuple[str, ...]:
    """Nodes that are no islands and still compute a mean, a variance or a softmax in FP32, or hold one that does."""
    nodes = (node for node in graph.graph if node.op_type in ("LayerNormalization", OP_TYPE))
    return tuple(name for name in map(node_name, nodes) if name not in islands)


def _is_wide_by_itself(node: onnx_ir.Node, typing: str) -> bool:
    """Whether a node that is no island computes in FP32: Q/DQ with FP32 scales, LayerNormalization where operands' types decide."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        scale = node.inputs[1]
        return scale is not None and scale.dtype == DataType.FLOAT
    return typing == "strong" and node.op_type == "LayerNormalization"


def _is_float_input(node: onnx_ir.Node, index: int) -> bool:
    """Whether the operator takes this input in FP32 whatever the type of the others."""
    return node.op_type == OP_TYPE and INPUT_NAMES[index] in FLOAT_INPUTS


def _norms_by_stash_type(graph: onnx_ir.Model) -> None:
    """Give GmfGroupMixAttention the body without casts round its LayerNormalization."""
    if any(function.name == OP_TYPE for function in graph.functions.values()):
        set_body(graph, function_body(graph.opset_imports[""], norm_by_casts=False))


def _half_weight(
    graph: onnx_ir.Model, value: onnx_ir.Value, dtype: DataType, weights: dict[str, onnx_ir.Value], flushed: dict[str, float]
) -> onnx_ir.Value:
    name = str(value.name)
    if name not in weights:
        assert value.const_value is not None
        exact = value.const_value.numpy()
        half = exact.astype(dtype.numpy())
        nonzero = int(np.count_nonzero(exact))
        share = 1.0 - int(np.count_nonzero(half)) / nonzero if nonzero else 0.0
        if share > FLUSHED_SHARE:
            flushed[name] = share
        weights[name] = new_constant(graph, half, f"{name}/{dtype.name.lower()}")
    return weights[name]


def _set_io(graph: onnx_ir.Model, dtype: DataType) -> None:
    """Give the graph's input and outputs the wanted type, by casts that keep their names."""
    (images,) = graph.graph.inputs
    if images.dtype != dtype:
        uses = list(images.uses())
        images.type = onnx_ir.TensorType(dtype)
        for use in uses:
            # the cast of an FP32 input has become a cast to its own type
            if use.node.op_type == "Cast" and use.node.outputs[0].dtype == dtype:
                use.node.outputs[0].replace_all_uses_with(images)
                graph.graph.remove(use.node, safe=True)
            elif use.node.op_type != "Cast":
                use.node.replace_input_with(
                    use.idx, insert_cast(graph, images, DataType.FLOAT, use.node, f"{images.name}/to_float/{use.node.name}")
                )
    for index, result in enumerate(graph.graph.outputs):
        if result.dtype == dtype:
            continue
        assert result.dtype is not None
        name, inner = str(result.name), result.dtype
        result.name = f"{name}/computed"
        cast = onnx_ir.node("Cast", [result], attributes={"to": dtype}, name=f"{name}/to_{dtype.name.lower()}")
        out = cast.outputs[0]
        out.name, out.type, out.shape = name, onnx_ir.TensorType(dtype), result.shape
        result.type = onnx_ir.TensorType(inner)
        graph.graph.append(cast)
        graph.graph.outputs[index] = out
