"""Constant tensors and attributes of a graph under rewriting."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray


def constant_of(value: onnx_ir.Value | None) -> NDArray[Any] | None:
    """The value's array where it is a constant, else None."""
    if value is None or value.const_value is None:
        return None
    array: NDArray[Any] = value.const_value.numpy()
    return array


def attribute_of(node: onnx_ir.Node, name: str, default: Any) -> Any:
    """The attribute's plain value, or the default where the node does not set it."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value


def batchnorm_affine(
    gain: NDArray[Any], bias: NDArray[Any], mean: NDArray[Any], variance: NDArray[Any], epsilon: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(a, b) with BatchNorm(x) = a * x + b per channel, in float64, so that the only rounding is the final one to FP32."""
    scale = np.asarray(gain, np.float64) / np.sqrt(np.asarray(variance, np.float64) + epsilon)
    return scale, np.asarray(bias, np.float64) - np.asarray(mean, np.float64) * scale
