"""What a weakly typed builder (TensorRT 8.6) must be told to keep in FP32, layer by layer; strongly typed ones read it in the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from gmf_edge.engines.tensorrt.versions import TensorRTVersion
from gmf_edge.spec import Precision

if TYPE_CHECKING:
    import tensorrt as trt

# how the parser's entry in a layer's metadata begins
ONNX_NODE = "[ONNX Layer:"


def pin_fp32_islands(
    network: trt.INetworkDefinition, version: TensorRTVersion, precision: Precision, names: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tell a weakly typed builder which layers stay FP32; (layers pinned, names that matched no layer).

    An FP16 graph says it by its types: pinned is what it computes in FP32, between a cast to FP32 and a cast back, or from an FP32
    input. An INT8 graph for a weakly typed builder is FP32 with Q/DQ (casts would part them from their GEMM) and says nothing by its
    types: pinned is a softmax over tokens, through the product that it feeds. In both, every layer whose ONNX node is among the names.
    Left free: layers fed by DequantizeLinear, which TensorRT fuses into INT8 kernels, shape arithmetic, and layers that only move
    data: TensorRT has no implementation of many of those for a pinned type (NVIDIA/TensorRT#2407), and their neighbours carry it.
    """
    if not version.has_weak_typing:
        return (), ()
    import tensorrt as trt

    types: dict[str, str] = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        typed = {trt.DataType.FLOAT: "fp32", trt.DataType.HALF: "fp16"} if precision is Precision.FP16 else {}
        types[tensor.name] = typed.get(tensor.dtype, "free")
    pinned: list[str] = []
    unmatched = set(names)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        outputs = [layer.get_output(number) for number in range(layer.num_outputs)]
        kind = _computed_type(layer, types)
        named = {name for name in names if _is_node(layer, name)}
        unmatched -= named
        for output in outputs:
            types[output.name] = kind
        arithmetic = layer.type not in (
            trt.LayerType.CAST,
            trt.LayerType.CONSTANT,
            trt.LayerType.IDENTITY,
            trt.LayerType.SHAPE,
            trt.LayerType.QUANTIZE,
            trt.LayerType.DEQUANTIZE,
            trt.LayerType.SHUFFLE,
            trt.LayerType.SLICE,
            trt.LayerType.CONCATENATION,
            trt.LayerType.GATHER,
        )
        in_island = kind in ("fp32", "softmax") or (
            layer.type == trt.LayerType.MATRIX_MULTIPLY and "softmax" in _read_types(layer, types)
        )
        if arithmetic and (in_island or named) and outputs and _is_float(outputs[0]):
            layer.precision = trt.DataType.FLOAT
            for number in range(layer.num_outputs):
                layer.set_output_type(number, trt.DataType.FLOAT)
            pinned.append(layer.name)
    return tuple(pinned), tuple(sorted(unmatched))


def _is_float(tensor: trt.ITensor) -> bool:
    import tensorrt as trt

    return tensor.dtype in (trt.DataType.FLOAT, trt.DataType.HALF)


def _is_node(layer: trt.ILayer, node: str) -> bool:
    """The parser names layers after their ONNX node, sometimes with a suffix, and writes the node into the metadata.

    8.6's does neither for LayerNormalization (onnx-tensorrt 8.6, builtin_op_importers.cpp): where one is named, all of them are meant,
    which costs time and no accuracy.
    """
    import tensorrt as trt

    if layer.type == trt.LayerType.NORMALIZATION and ONNX_NODE not in layer.metadata:
        return "/LayerNormalization" in node
    return layer.name == node or f"{ONNX_NODE} {node}]" in layer.metadata


def _computed_type(layer: trt.ILayer, types: dict[str, str]) -> str:
    """What the graph makes of this layer's outputs.

    "fp32", "fp16", "free" (neither is asked for), "constant" (asks for nothing), or "softmax" (a softmax, or moved from one).
    """
    import tensorrt as trt

    if layer.type == trt.LayerType.CAST:
        # pybind11 hands out the base class of every layer
        layer.__class__ = trt.ICastLayer
        target = cast("trt.ICastLayer", layer).to_type
        return {trt.DataType.FLOAT: "fp32", trt.DataType.HALF: "fp16"}.get(target, "free")
    if layer.type == trt.LayerType.CONSTANT:
        # FP32 scales and epsilons stand beside FP16 activations
        return "constant"
    if layer.type in (trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE, trt.LayerType.SHAPE):
        return "free"
    read = _read_types(layer, types)
    if "fp32" in read:
        return "fp32"
    if layer.type == trt.LayerType.SOFTMAX:
        return "softmax"
    if "softmax" in read:
        return "free" if layer.type == trt.LayerType.MATRIX_MULTIPLY else "softmax"
    for kind in ("fp16", "free"):
        if kind in read:
            return kind
    return "constant" if read else "free"


def _read_types(layer: trt.ILayer, types: dict[str, str]) -> list[str]:
    """The kinds of the layer's inputs; optional inputs that are not given are None in the bindings."""
    inputs = [layer.get_input(number) for number in range(layer.num_inputs)]
    return [types.get(tensor.name, "free") for tensor in inputs if tensor is not None]
