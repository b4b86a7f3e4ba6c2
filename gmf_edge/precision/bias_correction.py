"""b' = b + (W - W_q)^T E[x]: the mean error that rounding the weights leaves in a layer's output goes back into its bias.

E[x] is the mean of each input channel on the calibration images. Source: M. Nagel et al., Data-Free Quantization Through Weight
Equalization and Bias Correction (arXiv 1906.04721), section 4.2, with measured means.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from gmf_edge.precision.int8_layers import QuantizableLayer, constant_array, replace_constant


def mean_output_error(
    layer: QuantizableLayer, weight: NDArray[Any], rounded: NDArray[Any], channel_mean: NDArray[Any]
) -> NDArray[np.float64]:
    """(W - W_q)^T E[x], float64 [outputs].

    Args:
        layer: whose weights these are.
        weight, rounded: W and W_q in the layer's layout: [in, out] of a MatMul, [out, in] of a Gemm, [out, in / groups, kh, kw] of
        a Conv.
        channel_mean: E[x], [in].
    """
    difference = np.asarray(weight, np.float64) - np.asarray(rounded, np.float64)
    mean = np.asarray(channel_mean, np.float64)
    if layer.node.op_type == "Conv":
        # at the borders some taps read padding; the inner pixels are the many
        taps = difference.sum(axis=(2, 3))  # [out, in / groups]
        outputs, per_group = taps.shape
        groups = len(mean) // per_group
        grouped = mean.reshape(groups, per_group).repeat(outputs // groups, axis=0)  # [out, in / groups]
        error: NDArray[np.float64] = (taps * grouped).sum(axis=1)
        return error
    return mean @ difference if layer.weight_axis == 1 else difference @ mean


def bias_input(layer: QuantizableLayer) -> tuple[onnx_ir.Node, int] | None:
    """The node and input index of a layer's constant bias; a MatMul's is in the Add after it. None where there is none."""
    node = layer.node
    if node.op_type in ("Conv", "Gemm"):
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return (node, 2) if bias is not None and bias.const_value is not None else None
    uses = list(node.outputs[0].uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add":
        other = uses[0].node.inputs[1 - uses[0].idx]
        if other is not None and other.const_value is not None:
            return uses[0].node, 1 - uses[0].idx
    return None


def correct_bias(graph: onnx_ir.Model, layer: QuantizableLayer, error: NDArray[np.float64]) -> bool:
    """Add the error to the layer's bias, in place; False where it has none to add to."""
    place = bias_input(layer)
    if place is None:
        return False
    node, index = place
    bias = constant_array(node.inputs[index])
    corrected = (bias.astype(np.float64) + error.reshape(bias.shape)).astype(bias.dtype)
    replace_constant(graph, node, index, corrected, f"{layer.name}/corrected/bias")
    return True
