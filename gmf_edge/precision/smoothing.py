"""LayerNorm(x) @ W = (LayerNorm(x) / s) @ (s * W), per channel: outliers of an activation move into the weights, exact in FP32.

s_j = max|x_j|^a / max_k|W_jk|^(1 - a) with the exponent a of the recipe; 1 / s goes into the LayerNorm's gain and bias, so that the
graph keeps its nodes. Source: SmoothQuant (arXiv 2211.10438), equation 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from gmf_edge.errors import CalibrationError
from gmf_edge.precision.int8_layers import constant_array, quantizable_layers, replace_constant

# a channel that is silent, or unread, or almost so, would get a factor beyond what FP32 folds without loss
FACTOR_LIMITS = (1e-4, 1e4)


def smoothable(graph: onnx_ir.Model) -> dict[str, NDArray[Any]]:
    """Weights [C, outputs] of the Linears that read a LayerNorm's output alone, by the name of that output."""
    found: dict[str, NDArray[Any]] = {}
    for layer in quantizable_layers(graph):
        value = layer.node.inputs[0]
        norm = None if value is None else value.producer()
        if layer.node.op_type != "MatMul" or value is None or norm is None or norm.op_type != "LayerNormalization":
            continue
        if len(value.uses()) == 1 and len(norm.inputs) == 3:
            found[layer.tensor] = constant_array(layer.node.inputs[1])
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
    """Fold the factors into LayerNorms and Linears, in place.

    Args:
        graph: fused, FP32.
        factors: s [C] by the name of a LayerNorm's output, as Ranges.smoothing.

    Raises:
        CalibrationError: a name that is no such output here, or a factor that is not positive and finite.
    """
    places = smoothable(graph)
    for layer in quantizable_layers(graph):
        if layer.tensor not in factors or layer.tensor not in places:
            continue
        factor = np.asarray(factors[layer.tensor], np.float64)
        weight = places[layer.tensor]
        if factor.shape != (weight.shape[0],) or not ((factor > 0) & np.isfinite(factor)).all():
            raise CalibrationError(f"the smoothing factors of {layer.tensor} do not fit it", "calibrate again with this graph")
        value = layer.node.inputs[0]
        norm = None if value is None else value.producer()
        assert norm is not None
        for index in (1, 2):
            shifted = constant_array(norm.inputs[index]).astype(np.float64) / factor
            replace_constant(
                graph, norm, index, shifted.astype(np.float32), f"{norm.name}/smoothed/{('weight', 'bias')[index - 1]}"
            )
        scaled = weight.astype(np.float64) * factor[:, None]
        replace_constant(graph, layer.node, 1, scaled.astype(np.float32), f"{layer.name}/smoothed/weight")
    foreign = sorted(set(factors) - set(places))
    if foreign:
        raise CalibrationError(
            f"the ranges smooth {foreign[0]}, which no LayerNorm here writes for one Linear", "calibrate again with this graph"
        )
