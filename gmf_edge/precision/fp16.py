"""FP32 graph -> FP16 graph: FP16 weights and activations, with FP32 islands where the numerics need them.

Islands, and why:
softmax over tokens and the context    masses near 1/N: inside the body of GmfGroupMixAttention, by casts that are there in every precision
LayerNormalization                     statistics in FP32 by its own stash_type, with eps 1e-6 below FP16's smallest normal number
the head (pooling and classifier)      a mean over H x W and the logits themselves; too small to cost anything
weights beyond FP16's range            their layer, named in the report
activations beyond FP16's range        their producer and consumers, as gmf_edge.precision.fp16_range found on images
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir
from onnx_ir import DataType

FP16_MAX = 65504.0
FP16_SMALLEST_NORMAL = 2.0**-14
# share of a tensor's non-zero weights that FP16 rounds to zero before the tensor is worth a word
FLUSHED_SHARE = 0.01
HEAD_OPS = ("GlobalAveragePool", "Flatten", "Gemm")


@dataclass(frozen=True)
class Fp16Report:
    """What the lowering did.

    Attributes:
        islands: layers left in FP32, name -> reason.
        overflowing_weights: weight tensors beyond FP16's range, name -> largest magnitude; their layers are islands.
        flushed_weights: weight tensors of which more than 1 % of the non-zero values become zero, name -> share.
    """

    islands: Mapping[str, str] = field(default_factory=dict)
    overflowing_weights: Mapping[str, float] = field(default_factory=dict)
    flushed_weights: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, dict[str, str | float]]:
        """Plain values, for a manifest."""
        return {
            "islands": dict(self.islands),
            "overflowing_weights": dict(self.overflowing_weights),
            "flushed_weights": dict(self.flushed_weights),
        }


def to_fp16(graph: onnx_ir.Model, islands: Mapping[str, str] | None = None, io_dtype: str = "float32") -> Fp16Report:
    """Lower a fused graph to FP16 in place.

    Args:
        graph: FP32, fused (or with Q/DQ: a Quantize- or DequantizeLinear whose scale is FP32 stays FP32, one whose scale is FP16
            computes in FP16).
        islands: names of nodes to leave in FP32, each with the reason.
        io_dtype: "float32" or "float16", dtype of input and output.
    """
    kept = dict(islands or {})
    overflowing: dict[str, float] = {}
    flushed: dict[str, float] = {}
    for node in graph.graph:
        if node.op_type in HEAD_OPS:
            kept.setdefault(_name(node), "pooling and logits")
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale = node.inputs[1]
            if scale is not None and scale.dtype == DataType.FLOAT:
                kept.setdefault(_name(node), "FP32 scales")
        for value in node.inputs:
            if value is None or value.const_value is None or value.dtype != DataType.FLOAT:
                continue
            largest = float(np.abs(value.const_value.numpy()).max(initial=0.0))
            if not largest <= FP16_MAX and _name(node) not in kept:
                overflowing[str(value.name)] = largest
                kept[_name(node)] = f"weight {value.name} reaches {largest:.3g}, beyond FP16's {FP16_MAX:.0f}"

    casts: dict[tuple[str, DataType], onnx_ir.Value] = {}
    weights: dict[str, onnx_ir.Value] = {}
    for node in list(graph.graph):
        island = _name(node) in kept
        wanted = DataType.FLOAT if island else DataType.FLOAT16
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in (DataType.FLOAT, DataType.FLOAT16) or value.dtype == wanted:
                continue
            if value.const_value is not None and value.is_initializer():
                if value.dtype == DataType.FLOAT:
                    node.replace_input_with(index, _half_weight(graph, value, weights, flushed))
                continue
            key = (str(value.name), wanted)
            if key not in casts:
                cast = onnx_ir.node("Cast", [value], attributes={"to": wanted}, name=f"{value.name}/to_{wanted.name.lower()}")
                cast.outputs[0].name = f"{value.name}/{wanted.name.lower()}"
                cast.outputs[0].type, cast.outputs[0].shape = onnx_ir.TensorType(wanted), value.shape
                graph.graph.insert_before(node, cast)
                casts[key] = cast.outputs[0]
            node.replace_input_with(index, casts[key])
        if not island and node.op_type != "Cast":
            for value in node.outputs:
                if value.dtype == DataType.FLOAT:
                    # a new type object: clones of a graph share the old one
                    value.type = onnx_ir.TensorType(DataType.FLOAT16)
    _set_io(graph, DataType.FLOAT16 if io_dtype == "float16" else DataType.FLOAT)
    for name in [name for name, value in graph.graph.initializers.items() if not value.uses()]:
        del graph.graph.initializers[name]
    return Fp16Report(kept, overflowing, flushed)


def _name(node: onnx_ir.Node) -> str:
    return node.name or str(node.outputs[0].name)


def _half_weight(
    graph: onnx_ir.Model, value: onnx_ir.Value, weights: dict[str, onnx_ir.Value], flushed: dict[str, float]
) -> onnx_ir.Value:
    name = str(value.name)
    if name not in weights:
        assert value.const_value is not None
        exact = value.const_value.numpy()
        half = exact.astype(np.float16)
        nonzero = int(np.count_nonzero(exact))
        share = 1.0 - int(np.count_nonzero(half)) / nonzero if nonzero else 0.0
        if share > FLUSHED_SHARE:
            flushed[name] = share
        tensor = onnx_ir.tensor(half, name=f"{name}/float16")
        weight = onnx_ir.Value(name=tensor.name, type=onnx_ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        graph.graph.register_initializer(weight)
        weights[name] = weight
    return weights[name]


def _set_io(graph: onnx_ir.Model, dtype: DataType) -> None:
    """Give the graph's input and output the wanted type, by casts that keep their names."""
    (images,), (logits,) = graph.graph.inputs, graph.graph.outputs
    if images.dtype != dtype:
        uses = list(images.uses())
        images.type = onnx_ir.TensorType(dtype)
        for use in uses:
            # the cast of an FP32 input has become a cast to its own type
            if use.node.op_type == "Cast" and use.node.outputs[0].dtype == dtype:
                use.node.outputs[0].replace_all_uses_with(images)
                graph.graph.remove(use.node, safe=True)
            elif use.node.op_type != "Cast":
                use.node.replace_input_with(use.idx, _cast(graph, images, DataType.FLOAT, use.node))
    producer = logits.producer()
    assert producer is not None
    if logits.dtype != dtype:
        name, inner = str(logits.name), logits.dtype
        logits.name = f"{name}/computed"
        cast = onnx_ir.node("Cast", [logits], attributes={"to": dtype}, name=f"{name}/to_{dtype.name.lower()}")
        out = cast.outputs[0]
        out.name, out.type, out.shape = name, onnx_ir.TensorType(dtype), logits.shape
        logits.type = onnx_ir.TensorType(inner)
        graph.graph.append(cast)
        graph.graph.outputs[0] = out


def _cast(graph: onnx_ir.Model, value: onnx_ir.Value, dtype: DataType, before: onnx_ir.Node) -> onnx_ir.Value:
    cast = onnx_ir.node("Cast", [value], attributes={"to": dtype}, name=f"{value.name}/to_{dtype.name.lower()}/{before.name}")
    cast.outputs[0].name = f"{cast.name}/output"
    cast.outputs[0].type, cast.outputs[0].shape = onnx_ir.TensorType(dtype), value.shape
    graph.graph.insert_before(before, cast)
    return cast.outputs[0]
