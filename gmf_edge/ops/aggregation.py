"""Aggregation of GMA: q, k and v become group proxies, in float64, written to be read.

Source: GroupMixFormer (arXiv 2311.15157), models/groupmixformer.py, Aggregator and Agg_0, with the BatchNorms folded.
Letters: B batch, H, W feature map, N = H * W tokens, C channels, S = C / 5 channels of a segment. Maps are [B, H, W, channels].

    segments 0..3 of t in q, k, v:   t' = HardSwish(pointwise(depthwise_k(t)) + bias), k = -, 3, 5, 7; segment 0 only HardSwish
    segment 4 of q, k, v together:   x_agg0 = HardSwish(LayerNorm(pointwise(depthwise_3([q, k, v]))))
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

NUM_SEGMENTS = 5
# the depthwise windows of segments 1, 2, 3
WINDOWS = (3, 5, 7)


def hard_swish(x: Float64) -> Float64:
    """x * clip(x + 3, 0, 6) / 6, element by element."""
    y: Float64 = x * np.clip(x + 3.0, 0.0, 6.0) / 6.0
    return y


def depthwise(x: Float64, weight: Float64) -> Float64:
    """Cross-correlation of each channel with its own k x k window, zeros outside the map.

    Args:
        x: [B, H, W, channels].
        weight: [channels, 1, k, k], k odd.

    Returns:
        [B, H, W, channels].
    """
    height, width = x.shape[1:3]
    window = weight.shape[-1]
    pad = window // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    y = np.zeros_like(x)
    for row in range(window):
        for column in range(window):
            y += padded[:, row : row + height, column : column + width] * weight[:, 0, row, column]
    return y


def pointwise(x: Float64, weight: Float64) -> Float64:
    """1 x 1 convolution: x [B, H, W, channels in], weight [channels out, channels in, 1, 1] -> [B, H, W, channels out]."""
    y: Float64 = x @ weight[:, :, 0, 0].T
    return y


def layer_norm(x: Float64, weight: Float64, bias: Float64, epsilon: float) -> Float64:
    """Normalisation over the last axis with the biased variance, then weight and bias [channels]."""
    centred = x - x.mean(axis=-1, keepdims=True)
    y: Float64 = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon) * weight + bias
    return y


def aggregate(
    qkv: Float64, weights: dict[str, NDArray[Any]], height: int, width: int, epsilon: float
) -> tuple[Float64, Float64, Float64, Float64]:
    """The group proxies of one attention.

    Args:
        qkv: [B, N, 3C], segment-major: channel s * 3S + t * S + c holds segment s of t in (q, k, v).
        weights: the operator's inputs by name (group_mix_attention.INPUT_NAMES); read here: depthwise_*, pointwise_*, bias_*,
            norm_*.
        height, width: H, W.
        epsilon: of the LayerNorm.

    Returns:
        q', k', v' [B, H, W, 4S] each, and x_agg0 [B, H, W, S].
    """
    exact = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    batch, _, channels = qkv.shape
    segment_dim = channels // 3 // NUM_SEGMENTS
    segments = qkv.astype(np.float64).reshape(batch, height, width, NUM_SEGMENTS, 3, segment_dim)

    mixed: list[Float64] = []
    for t in range(3):
        parts = [hard_swish(segments[:, :, :, 0, t])]
        for i in range(1, len(WINDOWS) + 1):
            spread = depthwise(segments[:, :, :, i, t], exact[f"depthwise_{i}"])
            parts.append(hard_swish(pointwise(spread, exact[f"pointwise_{i}"]) + exact[f"bias_{i}"]))
        mixed.append(np.concatenate(parts, axis=-1))  # [B, H, W, 4S]

    # the channel order q S, k S, v S is that of the segment itself
    local = segments[:, :, :, 4].reshape(batch, height, width, 3 * segment_dim)
    local = pointwise(depthwise(local, exact["depthwise_0"]), exact["pointwise_0"])  # [B, H, W, S]
    x_agg0 = hard_swish(layer_norm(local, exact["norm_weight"], exact["norm_bias"], epsilon))
    return mixed[0], mixed[1], mixed[2], x_agg0
