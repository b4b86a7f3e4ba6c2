"""The Triton kernel that puts the 19 weights of GmfGroupMixAttention into the two tensors that its other kernels read; see layout.py."""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# (a kernel's arguments are pointers and scalars of the GPU language, not Python values)

from __future__ import annotations

import triton
import triton.language as tl

from gmf_edge.kernels.vector_rows import (
    AGGREGATE_2,
    AGGREGATE_3,
    BIAS,
    CRPE_0,
    CRPE_1,
    CRPE_2,
    CRPE_3,
    CRPE_BIAS,
    LOCAL,
    NORM,
    VECTOR_ROWS,
)


@triton.jit
def _tap(source, y, x, channel, inside, K: tl.constexpr):
    """Weights of tap (y, x) of a window [channels, 1, K, K], zero outside the window and where not `inside`: [P] FP32."""
    inside = inside & (y >= 0) & (y < K) & (x >= 0) & (x < K)
    return tl.load(source + channel * (K * K) + y * K + x, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def pack_weights(
    depthwise_1,
    pointwise_1,
    bias_1,
    depthwise_2,
    pointwise_2,
    bias_2,
    depthwise_3,
    pointwise_3,
    bias_3,
    depthwise_0,
    pointwise_0,
    norm_weight,
    norm_bias,
    crpe_weight_3,
    crpe_bias_3,
    crpe_weight_5,
    crpe_bias_5,
    crpe_weight_7,
    crpe_bias_7,
    vectors,
    matrices,
    S: tl.constexpr,
    P: tl.constexpr,
):
    """One program per row of `vectors` or matrix of `matrices`: grid (VECTOR_ROWS + 6,)."""
    D: tl.constexpr = S // 2
    row = tl.program_id(0)
    c = tl.arange(0, P)
    real = c < S
    first_head = c < D
    if row < VECTOR_ROWS:
        value = tl.zeros([P], tl.float32)
        if row < AGGREGATE_2:
            value = _tap(depthwise_1, row // 3, row % 3, c, real, 3)
        elif row < AGGREGATE_3:
            tap = row - AGGREGATE_2
            value = _tap(depthwise_2, tap // 5, tap % 5, c, real, 5)
        elif row < BIAS:
            tap = row - AGGREGATE_3
            value = _tap(depthwise_3, tap // 7, tap % 7, c, real, 7)
        elif row < LOCAL:
            source = row - BIAS
            value += tl.load(bias_1 + c, mask=real & (source == 0), other=0.0).to(tl.float32)
            value += tl.load(bias_2 + c, mask=real & (source == 1), other=0.0).to(tl.float32)
            value += tl.load(bias_3 + c, mask=real & (source == 2), other=0.0).to(tl.float32)
        elif row < NORM:
            # q, k and v of segment 4 follow each other
            tap = (row - LOCAL) % 9
            value = _tap(depthwise_0, tap // 3, tap % 3, c + (row - LOCAL) // 9 * S, real, 3)
        elif row < CRPE_0:
            value += tl.load(norm_weight + c, mask=real & (row == NORM), other=0.0).to(tl.float32)
            value += tl.load(norm_bias + c, mask=real & (row != NORM), other=0.0).to(tl.float32)
        elif row < CRPE_1:
            tap = row - CRPE_0
            value = _tap(crpe_weight_3, tap // 3, tap % 3, c, real, 3)
        elif row < CRPE_2:
            tap = row - CRPE_1
            value = _tap(crpe_weight_5, tap // 5, tap % 5, c, real, 5)
        elif row < CRPE_3:
            # segment 2: head 4 is the third of window 5, centred in 7 x 7; head 5 the first of window 7
            tap = row - CRPE_2
            value = _tap(crpe_weight_5, tap // 7 - 1, tap % 7 - 1, c + 2 * D, first_head, 5)
            value += _tap(crpe_weight_7, tap // 7, tap % 7, c - D, real & (c >= D), 7)
        elif row < CRPE_BIAS:
            tap = row - CRPE_3
            value = _tap(crpe_weight_7, tap // 7, tap % 7, c + D, real, 7)
        else:
            segment = row - CRPE_BIAS
            value += tl.load(crpe_bias_3 + c, mask=real & (segment == 0), other=0.0).to(tl.float32)
            value += tl.load(crpe_bias_5 + c, mask=real & (segment == 1), other=0.0).to(tl.float32)
            value += tl.load(crpe_bias_5 + c + 2 * D, mask=first_head & (segment == 2), other=0.0).to(tl.float32)
            value += tl.load(crpe_bias_7 + c - D, mask=real & (c >= D) & (segment == 2), other=0.0).to(tl.float32)
            value += tl.load(crpe_bias_7 + c + D, mask=real & (segment == 3), other=0.0).to(tl.float32)
        tl.store(vectors + row * P + c, value)
    else:
        # [out, in, 1, 1] -> [in, out]; pointwise_0 has 3S inputs, a matrix for each of q, k, v
        index = row - VECTOR_ROWS
        element = c[None, :] * S + c[:, None]
        local = c[None, :] * (3 * S) + c[:, None] + (index - 3) * S
        inside = real[:, None] & real[None, :]
        matrix = tl.load(pointwise_1 + element, mask=inside & (index == 0), other=0.0)
        matrix += tl.load(pointwise_2 + element, mask=inside & (index == 1), other=0.0)
        matrix += tl.load(pointwise_3 + element, mask=inside & (index == 2), other=0.0)
        matrix += tl.load(pointwise_0 + local, mask=inside & (index >= 3), other=0.0)
        tl.store(matrices + index * (P * P) + c[:, None] * P + c[None, :], matrix)
