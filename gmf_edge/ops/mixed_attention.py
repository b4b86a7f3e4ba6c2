"""out = scale * q @ (softmax(k, over tokens).T @ v) + q * (depthwise_{3,5,7}(v) + bias), in float64, written to be read.

Source: GroupMixFormer (arXiv 2311.15157), models/groupmixformer.py, EfficientAtt.forward and ConvRelPosEnc (CRPE).
Letters: B batch, H, W feature map, N = H * W tokens, S channels of a segment, d = S / 2 of a head, 8 heads over 4S channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmf_edge.ops.aggregation import WINDOWS, Float64, depthwise

NUM_HEADS = 8
# how many heads each of CRPE's windows 3, 5, 7 serves, in head order
CRPE_HEADS = (2, 3, 3)


def relative_position(v: Float64, weights: dict[str, NDArray[Any]]) -> Float64:
    """CRPE's depthwise_{3,5,7}(v) + bias: [B, H, W, 4S] -> [B, H, W, 4S]; window 3 on heads 0-1, 5 on 2-4, 7 on 5-7.

    Args:
        v: v' of the aggregation.
        weights: the operator's inputs by name; read here: crpe_weight_*, crpe_bias_*.
    """
    head_dim = v.shape[-1] // NUM_HEADS
    parts = np.split(v, np.cumsum(CRPE_HEADS)[:-1] * head_dim, axis=-1)
    encoded = [
        depthwise(part, np.asarray(weights[f"crpe_weight_{window}"], np.float64))
        + np.asarray(weights[f"crpe_bias_{window}"], np.float64)
        for part, window in zip(parts, WINDOWS, strict=True)
    ]
    return np.concatenate(encoded, axis=-1)


def attend(q: Float64, k: Float64, v: Float64, scale: float) -> Float64:
    """scale * q @ (softmax(k, over tokens).T @ v), head by head.

    Args:
        q, k, v: [B, N, 4S], head-major channels.
        scale: (C / 8)^-0.5 of the full C.

    Returns:
        [B, N, 4S].
    """
    batch, tokens, channels = q.shape
    head_dim = channels // NUM_HEADS
    q, k, v = (x.reshape(batch, tokens, NUM_HEADS, head_dim).transpose(0, 2, 1, 3) for x in (q, k, v))  # [B, 8, N, d]
    # subtracting the maximum keeps exp finite
    weight = np.exp(k - k.max(axis=2, keepdims=True))
    weight /= weight.sum(axis=2, keepdims=True)
    context = weight.transpose(0, 1, 3, 2) @ v  # [B, 8, d of k, d of v]
    out: Float64 = scale * (q @ context)
    return out.transpose(0, 2, 1, 3).reshape(batch, tokens, channels)


def mixed_attention(q: Float64, k: Float64, v: Float64, weights: dict[str, NDArray[Any]], scale: float) -> Float64:
    """Attention over the group proxies plus the convolutional relative position encoding.

    Args:
        q, k, v: q', k', v' of the aggregation, [B, H, W, 4S] each.
        weights: the operator's inputs by name; read here: crpe_*.
        scale: (C / 8)^-0.5 of the full C.

    Returns:
        [B, H, W, 4S].
    """
    batch, height, width, channels = q.shape
    flat = (batch, height * width, channels)
    attention = attend(q.reshape(flat), k.reshape(flat), v.reshape(flat), scale).reshape(q.shape)
    return attention + q * relative_position(v, weights)
