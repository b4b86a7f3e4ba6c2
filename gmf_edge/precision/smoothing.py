"""x @ W = (x / s) @ (s * W), per channel: outliers of an activation move into the weights, exact in FP32.

s_j = max|x_j|^a / max_k|W_jk|^(1 - a) with an exponent a of the recipe. Source: SmoothQuant (arXiv 2211.10438), equation 4.

where x comes from        exponent         what becomes of 1 / s
LayerNorm (qkv, fc1)      smoothing        it goes into the LayerNorm's gain and bias: the graph keeps its nodes
attention (proj)          proj_smoothing   a Mul before proj. Attention is a mean over all tokens and small; the local features beside it
                                           are normalised to 1. One scale for both leaves attention few codes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from gmf_edge.errors import CalibrationError
from gmf_edge.ops.graph_parts import new_constant
from gmf_edge.precision.int8_layers import (
    QuantizableLayer,
    constant_array,
    quantizable_layers,
    replace_constant,
)

# a channel that is silent, or unread, or almost so, would get a factor beyond what FP32 folds without loss
FACTOR_LIMITS = (1e-4, 1e4)


class Smoothable(NamedTuple):
    """A Linear whose input can be smoothed.

    Attributes:
        weight: W, [C, outputs].
        is_folded: whether 1 / s goes into a LayerNorm; else a Mul is added.
    """

    weight: NDArray[Any]
    is_folded: bool


def smoothable(graph: onnx_ir.Model) -> dict[str, Smoothable]:
    """The Linears that alone read a LayerNorm's output, and proj's, by the name of their input."""
    found: dict[str, Smoothable] = {}
    for layer in quantizable_layers(graph):
        value = layer.node.inputs[0]
        producer = None if value is None else value.producer()
        if layer.node.op_type != "MatMul" or value is None or producer is None or len(value.uses()) != 1:
            continue
        is_folded = producer.op_type == "LayerNormalization" and len(producer.inputs) == 3
        if is_folded or layer.kind == "proj":
            found[layer.tensor] = Smoothable(constant_array(layer.node.inputs[1]), is_folded)
    return found


def smoothing_factors(channel_largest: NDArray[Any], weight: NDArray[Any], exponent: float) -> NDArray[np.float32]:
    """s of the module's formula, float32 [C]; 1 for a channel that is silent or that no output reads.

    Args:
        channel_largest: max|x_j|, [C].
        weight: W, [C, outputs].
        exponent: a, in 0..1.
    """
    activation = np.asarray(channel_largest, np.float64)
    read = np.abs(np.asarray(weight, np.float64)).max(axis=1)
    alive = (activation > 0) & (read > 0)
    factors = np.where(alive, activation, 1.0) ** exponent / np.where(alive, read, 1.0) ** (1.0 - exponent)
    return np.clip(factors, *FACTOR_LIMITS).astype(np.float32)


def smooth(graph: onnx_ir.Model, factors: Mapping[str, Sequence[float]]) -> None:
    """Fold the factors into LayerNorms and Linears, in place. The smoothed activation has the name that the exact one had.

    Args:
        graph: fused, FP32.
        factors: s [C] by the name of a Linear's input, as Ranges.smoothing.

    Raises:
        CalibrationError: a name that is no such output here, or a factor that is not positive and finite.
    """
    places = smoothable(graph)
    for layer in quantizable_layers(graph):
        if layer.tensor not in factors or layer.tensor not in places:
            continue
        factor = np.asarray(factors[layer.tensor], np.float64)
        weight, is_folded = places[layer.tensor]
        if factor.shape != (weight.shape[0],) or not ((factor > 0) & np.isfinite(factor)).all():
            raise CalibrationError(f"the smoothing factors of {layer.tensor} do not fit it", "calibrate again with this graph")
        value = layer.node.inputs[0]
        assert value is not None
        if is_folded:
            _divide_layer_norm(graph, value, factor)
        else:
            _divide(graph, layer, value, factor)
        scaled = weight.astype(np.float64) * factor[:, None]
        replace_constant(graph, layer.node, 1, scaled.astype(np.float32), f"{layer.name}/smoothed/weight")
    foreign = sorted(set(factors) - set(places))
    if foreign:
        raise CalibrationError(
            f"the ranges smooth {foreign[0]}, which no Linear here can read smoothed", "calibrate again with this graph"
        )


def _divide_layer_norm(graph: onnx_ir.Model, value: onnx_ir.Value, factor: NDArray[np.float64]) -> None:
    norm = value.producer()
    assert norm is not None
    for index, what in ((1, "weight"), (2, "bias")):
        shifted = constant_array(norm.inputs[index]).astype(np.float64) / factor
        replace_constant(graph, norm, index, shifted.astype(np.float32), f"{norm.name}/smoothed/{what}")


def _divide(graph: onnx_ir.Model, layer: QuantizableLayer, value: onnx_ir.Value, factor: NDArray[np.float64]) -> None:
    reciprocal = new_constant(graph, (1.0 / factor).astype(np.float32), f"{layer.name}/smoothed/reciprocal")
    node = onnx_ir.node("Mul", (value, reciprocal), name=f"{layer.name}/smoothed/Mul")
    out = node.outputs[0]
    out.dtype, out.shape = onnx_ir.DataType.FLOAT, value.shape
    value.name, out.name = f"{layer.tensor}/unsmoothed", layer.tensor
    graph.graph.insert_before(layer.node, node)
    layer.node.replace_input_with(0, out)
