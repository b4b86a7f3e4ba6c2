"""Fused FP32 graph + ranges -> the same graph with Q/DQ: INT8 weights per channel, INT8 activations per tensor, both symmetric.

    x  -> QuantizeLinear -> DequantizeLinear -+
                                              +-> MatMul, Gemm or Conv -> (bias, activation, ... in floating point)
    int8 weight ---------> DequantizeLinear --+

x_q = clip(round(x / s), -128, 127) with s = range / 127; W_q = round(W / s_k) with s_k = max|W_k| / 127 for output channel k. All
zero points are there and zero, which TensorRT demands. Source: ONNX QuantizeLinear; NVIDIA TensorRT, Working with Quantized Types.

The order of lowering: insert_qdq on the FP32 graph, then gmf_edge.precision.fp16.to_fp16, then gmf_edge.rewrite.bodies. With FP32
scales the graph is valid as it stands and is what ONNX Runtime runs on the CPU; to_fp16 leaves its Q/DQ in FP32 and casts round
them. With FP16 scales it is valid once to_fp16 has lowered what stands between. A layer that to_fp16 leaves in FP32 has FP32 scales
there too: a cast between an FP16 DequantizeLinear and an FP32 layer is folded by TensorRT into one that no kernel exists for
(NVIDIA/TensorRT#4832).

ONNX Runtime turns DequantizeLinear, DequantizeLinear, MatMul into MatMulIntegerToFloat, which multiplies in INT8 and returns
floating point; on x86 it makes INT8 activations UINT8 with zero point 128 by itself, where that is the faster kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir import DataType

from gmf_edge.errors import CalibrationError, PrecisionError, SpecError
from gmf_edge.ops.graph_parts import new_constant
from gmf_edge.precision.bias_correction import correct_bias, mean_output_error
from gmf_edge.precision.int8_layers import (
    QuantizableLayer,
    chosen_layers,
    constant_array,
    independent_copy,
    quantizable_layers,
)
from gmf_edge.precision.ranges import Ranges
from gmf_edge.precision.recipe import Recipe
from gmf_edge.precision.smoothing import smooth

LARGEST_CODE = 127
SCALE_DTYPES = {"float32": (np.float32, DataType.FLOAT), "float16": (np.float16, DataType.FLOAT16)}
# of a tensor that is all zero, where any positive scale is right
SCALE_OF_ZERO = 1.0


def insert_qdq(
    graph: onnx_ir.Model,
    ranges: Ranges,
    recipe: Recipe,
    *,
    exceptions: frozenset[str] = frozenset(),
    scales: str = "float32",
    fp32_layers: frozenset[str] = frozenset(),
) -> onnx_ir.Model:
    """A copy of a fused graph with Q/DQ round the layers that the recipe names; the same arguments give the same bytes.

    Args:
        graph: fused, FP32; left as it is.
        ranges: of this graph, with the recipe's smoothing.
        recipe: what to quantise.
        exceptions: names of layers (quantizable_layers) to leave as they are.
        scales: "float32", or "float16" for a graph that to_fp16 lowers next (TensorRT 10 and later, opset 19 and later).
        fp32_layers: names of layers whose scales are FP32 all the same, because to_fp16 leaves them in FP32.

    Raises:
        SpecError: an unknown exception or dtype of scales, or FP16 scales below opset 19.
        CalibrationError: ranges of another graph or of another smoothing, or a tensor that they lack.
        PrecisionError: a weight that is not finite, or a scale that FP16 cannot hold.
    """
    if scales not in SCALE_DTYPES:
        raise SpecError(f"scales of dtype {scales!r} are not known", f"use {' or '.join(SCALE_DTYPES)}")
    if scales == "float16" and graph.opset_imports[""] < 19:
        raise SpecError(f"FP16 scales need opset 19, the graph has {graph.opset_imports['']}", "use float32 scales")
    known = {layer.name for layer in quantizable_layers(graph)}
    unknown = sorted(exceptions - known)
    if unknown:
        raise SpecError(f"{unknown[0]} is not a layer that could be quantised", "take names from the sensitivity table")
    lowered = independent_copy(graph)
    require_smoothing(ranges, recipe)
    smooth(lowered, ranges.smoothing)
    pairs: dict[tuple[str, str], onnx_ir.Value] = {}
    for layer in chosen_layers(lowered, recipe, exceptions):
        found = ranges.tensor(layer.tensor, layer.name)
        dtype = "float32" if layer.name in fp32_layers else scales
        scale = _scalar_scale(found.threshold, dtype, layer.tensor)
        if layer.weight_axis is not None:
            weight = constant_array(layer.node.inputs[1])
            codes, weight_scales = quantized_weight(weight, layer.weight_axis, dtype, layer.name)
            if recipe.bias_correction:
                mean = np.asarray(found.channel_mean, np.float64)
                factors = ranges.smoothing.get(layer.tensor)
                if factors is not None:
                    mean = mean / np.asarray(factors, np.float64)
                rounded = dequantized(codes, weight_scales, layer.weight_axis)
                correct_bias(lowered, layer, mean_output_error(layer, weight, rounded, mean))
            _quantize_weight(lowered, layer, codes, weight_scales, dtype)
        _quantize_input(lowered, layer, scale, dtype, pairs)
    return lowered


def require_smoothing(ranges: Ranges, recipe: Recipe) -> None:
    """Refuse ranges that were found with another smoothing.

    Raises:
        CalibrationError: they were.
    """
    for name in ("smoothing", "proj_smoothing"):
        made, wanted = getattr(ranges.provenance, name), getattr(recipe, name)
        if made != wanted:
            raise CalibrationError(
                f"the ranges were calibrated with {name} {made:g}, the recipe has {wanted:g}", "calibrate again with this recipe"
            )


def quantized_weight(
    weight: NDArray[Any], axis: int, scales: str = "float32", name: str = "the weight"
) -> tuple[NDArray[np.int8], NDArray[Any]]:
    """(codes int8 of the weight's shape, scales [outputs]) with codes in -127..127, symmetric per output channel.

    Args:
        weight: of any shape.
        axis: of its output channels.
        scales: dtype of the scales: codes are rounded with the scale that is stored.
        name: for messages.

    Raises:
        PrecisionError: a weight that is not finite, or a scale that FP16 cannot hold.
    """
    exact = np.asarray(weight, np.float64)
    if not np.isfinite(exact).all():
        raise PrecisionError(f"{name} has weights that are NaN or infinite", "check the checkpoint")
    largest = np.abs(exact).max(axis=tuple(i for i in range(exact.ndim) if i != axis))  # [outputs]
    stored = _stored_scales(np.where(largest > 0, largest / LARGEST_CODE, SCALE_OF_ZERO), scales, name)
    spread = stored.astype(np.float64).reshape(_along(axis, exact.ndim))
    codes = np.clip(np.rint(exact / spread), -LARGEST_CODE, LARGEST_CODE)
    return codes.astype(np.int8), stored


def dequantized(codes: NDArray[np.int8], weight_scales: NDArray[Any], axis: int) -> NDArray[np.float64]:
    """codes * scales along an axis, float64."""
    spread: NDArray[np.float64] = codes.astype(np.float64) * weight_scales.astype(np.float64).reshape(_along(axis, codes.ndim))
    return spread


def activation_scale(threshold: float) -> float:
    """s = range / 127; SCALE_OF_ZERO for a tensor that is all zero."""
    return threshold / LARGEST_CODE if threshold > 0 else SCALE_OF_ZERO


def _scalar_scale(threshold: float, scales: str, name: str) -> NDArray[Any]:
    return _stored_scales(np.asarray(activation_scale(threshold), np.float64), scales, name)


def _stored_scales(exact: NDArray[Any], scales: str, name: str) -> NDArray[Any]:
    # what overflows here is refused below
    with np.errstate(over="ignore"):
        stored = np.asarray(exact).astype(SCALE_DTYPES[scales][0])
    if not ((stored > 0) & np.isfinite(stored)).all():
        worst = float(exact.max()) if not np.isfinite(stored).all() else float(exact.min())
        raise PrecisionError(
            f"{name} needs the scale {worst:.3g}, which {scales} cannot hold", "leave that layer out, or use float32 scales"
        )
    return stored


def _along(axis: int, ndim: int) -> tuple[int, ...]:
    return tuple(-1 if i == axis else 1 for i in range(ndim))


def _quantize_weight(
    graph: onnx_ir.Model, layer: QuantizableLayer, codes: NDArray[np.int8], weight_scales: NDArray[Any], scales: str
) -> None:
    old = layer.node.inputs[1]
    assert old is not None
    axis = layer.weight_axis
    assert axis is not None
    inputs = (
        new_constant(graph, codes, f"{layer.name}/weight/int8"),
        new_constant(graph, weight_scales, f"{layer.name}/weight/scale"),
        new_constant(graph, np.zeros(weight_scales.shape, np.int8), f"{layer.name}/weight/zero_point"),
    )
    node = onnx_ir.node("DequantizeLinear", inputs, attributes={"axis": axis}, name=f"{layer.name}/weight/DequantizeLinear")
    out = node.outputs[0]
    out.name, out.dtype, out.shape = f"{layer.name}/weight/dequantized", SCALE_DTYPES[scales][1], old.shape
    graph.graph.insert_before(layer.node, node)
    layer.node.replace_input_with(1, out)
    if not old.uses() and old.name in graph.graph.initializers:
        del graph.graph.initializers[old.name]


def _quantize_input(
    graph: onnx_ir.Model, layer: QuantizableLayer, scale: NDArray[Any], scales: str, pairs: dict[tuple[str, str], onnx_ir.Value]
) -> None:
    """One Q/DQ pair a tensor and dtype of scales, shared by all layers that read it so."""
    key = (layer.tensor, scales)
    if key not in pairs:
        value = layer.node.inputs[layer.input_index]
        assert value is not None
        # a fused graph is FP32 all through, but not every value says so, and to_fp16 casts what it knows the type of
        value.dtype = value.dtype or DataType.FLOAT
        # the tensor's second pair needs names of its own
        name = layer.tensor if not any(tensor == layer.tensor for tensor, _ in pairs) else f"{layer.tensor}/{scales}"
        scale_input = new_constant(graph, scale, f"{name}/scale")
        zero_point = new_constant(graph, np.zeros((), np.int8), f"{name}/zero_point")
        quantize = onnx_ir.node("QuantizeLinear", (value, scale_input, zero_point), name=f"{name}/QuantizeLinear")
        codes = quantize.outputs[0]
        codes.name, codes.dtype, codes.shape = f"{name}/int8", DataType.INT8, value.shape
        dequantize = onnx_ir.node("DequantizeLinear", (codes, scale_input, zero_point), name=f"{name}/DequantizeLinear")
        out = dequantize.outputs[0]
        out.name, out.dtype, out.shape = f"{name}/dequantized", SCALE_DTYPES[scales][1], value.shape
        graph.graph.insert_before(layer.node, (quantize, dequantize))
        pairs[key] = out
    layer.node.replace_input_with(layer.input_index, pairs[key])
