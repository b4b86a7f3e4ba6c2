"""GmfGroupMixAttention as three Triton kernels: pack_weights, aggregate (A), attend (B).

The operator and its letters: gmf_edge/ops/group_mix_attention.py. Segments are independent (segment s of q, k, v holds
exactly heads 2s and 2s + 1), so a program works on one segment and one range of tokens.

pack_weights  the 19 weights -> `vectors` [VECTOR_ROWS, P] FP32, a row per window tap, and `matrices` [6, P, P], padded with
              zeros to P = S rounded up to a power of two: a tap's weights are then one contiguous load without a mask.
aggregate     segments 0..3: v' -> scratch; k' stays in registers: running softmax over the tokens of one split, that is the
              maximum m, the sum l and the context exp(k' - m).T @ v', in FP32, to `partials`.
              Segment 4: x_agg0.
attend        merges the splits' partials exactly; out = q' @ (context * scale / l) + q' * (CRPE(v') + bias).

x_agg0 goes straight into the output: `local` points at its channel 4S.

Arithmetic: loads and tensor-core operands in the type of qkv; all sums, softmax statistics and LayerNorm in FP32.
Shapes: qkv [B, N, 3C], scratch [B, N, 4S], partials [B, splits, 4, S * (2 + d)] FP32, output [B, N, C]; see
layout.py. Arguments stand in the order inputs, integers, outputs.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# (a kernel's arguments are pointers and scalars of the GPU language, not Python values)

from __future__ import annotations

import triton
import triton.language as tl

from gmf_edge.kernels import layout

# what the compiler may read of the module: constants wrapped as such
AGGREGATE_1 = tl.constexpr(layout.DEPTHWISE_ROW[0])
AGGREGATE_2 = tl.constexpr(layout.DEPTHWISE_ROW[1])
AGGREGATE_3 = tl.constexpr(layout.DEPTHWISE_ROW[2])
BIAS = tl.constexpr(layout.BIAS_ROW)
LOCAL = tl.constexpr(layout.LOCAL_ROW)
NORM = tl.constexpr(layout.NORM_ROW)
CRPE_0 = tl.constexpr(layout.CRPE_ROW[0])
CRPE_1 = tl.constexpr(layout.CRPE_ROW[1])
CRPE_2 = tl.constexpr(layout.CRPE_ROW[2])
CRPE_3 = tl.constexpr(layout.CRPE_ROW[3])
CRPE_BIAS = tl.constexpr(layout.CRPE_BIAS_ROW)
VECTOR_ROWS = tl.constexpr(layout.VECTOR_ROWS)


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


@triton.jit
def _hard_swish(x):
    return x * tl.minimum(tl.maximum(x + 3.0, 0.0), 6.0) * (1.0 / 6.0)


@triton.jit
def _depthwise(
    tokens,
    stride,
    weights,
    n,
    valid,
    height,
    width,
    first,
    S: tl.constexpr,
    P: tl.constexpr,
    K: tl.constexpr,
    T: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """K x K window around each of the tokens n for channels first .. first + CHANNELS - 1: [T, CHANNELS] FP32.

    tokens points at channel 0 of token 0, `stride` elements part two tokens; weights points at the first of K * K rows of P.
    Outside the map and beyond channel S the values are zero.
    """
    c = first + tl.arange(0, CHANNELS)
    y = n // width
    x = n % width
    total = tl.zeros([T, CHANNELS], tl.float32)
    for dy in range(K):
        row_ok = valid & (y + dy >= K // 2) & (y + dy < height + K // 2)
        row = tokens + (n + (dy - K // 2) * width)[:, None] * stride + c[None, :]
        for dx in tl.static_range(K):
            ok = row_ok & (x + dx >= K // 2) & (x + dx < width + K // 2)
            inside = ok[:, None] & (c < S)[None, :]
            value = tl.load(row + (dx - K // 2) * stride, mask=inside, other=0.0).to(tl.float32)
            total += value * tl.load(weights + (dy * K + dx) * P + c)[None, :]
    return total


@triton.jit
def _separable(
    tokens,
    weights,
    matrix,
    n,
    valid,
    height,
    width,
    S: tl.constexpr,
    P: tl.constexpr,
    K: tl.constexpr,
    T: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Depthwise K x K of one of the 15 groups of S channels of qkv, then pointwise [in, out]: [T, P] FP32.

    CHANNELS at a time: wide segments would not fit into the registers at once, and S = 96 leaves a quarter of P idle.
    """
    c = tl.arange(0, P)
    mixed = tl.zeros([T, P], tl.float32)
    for first in range(0, S, CHANNELS):
        spread = _depthwise(tokens, 15 * S, weights, n, valid, height, width, first, S, P, K, T, CHANNELS)
        part = tl.load(matrix + (first + tl.arange(0, CHANNELS))[:, None] * P + c[None, :])
        mixed += _multiply(spread.to(part.dtype), part)
    return mixed


@triton.jit
def _multiply(a, b):
    """Tensor-core product with FP32 sums; FP32 operands are not rounded to TF32."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _proxy(
    tokens,
    vectors,
    matrices,
    n,
    valid,
    height,
    width,
    SEGMENT: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    T: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """q', k' or v' of one of the segments 0..3 for a tile of tokens: [T, P] FP32; padded channels are 0."""
    c = tl.arange(0, P)
    if SEGMENT == 0:
        inside = valid[:, None] & (c < S)[None, :]
        mixed = tl.load(tokens + n[:, None] * (15 * S) + c[None, :], mask=inside, other=0.0).to(tl.float32)
    else:
        K: tl.constexpr = 2 * SEGMENT + 1
        ROW: tl.constexpr = AGGREGATE_1 if SEGMENT == 1 else (AGGREGATE_2 if SEGMENT == 2 else AGGREGATE_3)
        matrix = matrices + (SEGMENT - 1) * (P * P)
        mixed = _separable(tokens, vectors + ROW * P, matrix, n, valid, height, width, S, P, K, T, CHANNELS)
        mixed += tl.load(vectors + (BIAS + SEGMENT - 1) * P + c)[None, :]
    return _hard_swish(mixed)


@triton.jit
def _aggregate_segment(
    qkv,
    vectors,
    matrices,
    scratch,
    partial,
    first,
    last,
    height,
    width,
    SEGMENT: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    T: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """v' to scratch, and the softmax statistics of tokens first..last - 1 to `partial`; the pointers are those of one image."""
    D: tl.constexpr = S // 2
    c = tl.arange(0, P)
    maximum = tl.full([P], float("-inf"), tl.float32)
    total = tl.zeros([P], tl.float32)
    context = tl.zeros([P, P], tl.float32)  # [channel of k, channel of v]
    for start in range(first, last, T):
        n = start + tl.arange(0, T)
        valid = n < last
        segment = qkv + SEGMENT * 3 * S
        v = _proxy(segment + 2 * S, vectors, matrices, n, valid, height, width, SEGMENT, S, P, T, CHANNELS).to(
            scratch.dtype.element_ty
        )
        inside = valid[:, None] & (c < S)[None, :]
        tl.store(scratch + n[:, None] * (4 * S) + SEGMENT * S + c[None, :], v, mask=inside)
        k = _proxy(segment + S, vectors, matrices, n, valid, height, width, SEGMENT, S, P, T, CHANNELS)

        # a split has at least one token, so the maximum is finite from the first tile on
        k = tl.where(valid[:, None], k, float("-inf"))
        higher = tl.maximum(maximum, tl.max(k, axis=0))
        rescale = tl.exp(maximum - higher)
        weight = tl.exp(k - higher[None, :])
        total = total * rescale + tl.sum(weight, axis=0)
        context = context * rescale[:, None] + _multiply(tl.trans(weight.to(v.dtype)), v)
        maximum = higher

    tl.store(partial + c, maximum, mask=c < S)
    tl.store(partial + S + c, total, mask=c < S)
    # only the two diagonal blocks: a head's k meets its own v
    same_head = (c[:, None] // D == c[None, :] // D) & (c < S)[:, None] & (c < S)[None, :]
    tl.store(partial + 2 * S + c[:, None] * D + (c % D)[None, :], context, mask=same_head)


@triton.jit
def _aggregate_local(
    qkv,
    vectors,
    matrices,
    local,
    first,
    last,
    height,
    width,
    EPSILON: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    T: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """x_agg0 of tokens first..last - 1 to `local`, 5S elements a token; the pointers are those of one image."""
    c = tl.arange(0, P)
    for start in range(first, last, T):
        n = start + tl.arange(0, T)
        valid = n < last
        mixed = tl.zeros([T, P], tl.float32)
        for t in range(3):
            weights = vectors + (LOCAL + t * 9) * P
            matrix = matrices + (3 + t) * (P * P)
            mixed += _separable(qkv + (12 + t) * S, weights, matrix, n, valid, height, width, S, P, 3, T, CHANNELS)
        # LayerNorm over the S real channels; the padded ones hold zeros and must not enter the variance
        centred = tl.where((c < S)[None, :], mixed - (tl.sum(mixed, axis=1) / S)[:, None], 0.0)
        deviation = tl.sqrt(tl.sum(centred * centred, axis=1) / S + EPSILON)
        scaled = centred / deviation[:, None] * tl.load(vectors + NORM * P + c)[None, :]
        x_agg0 = _hard_swish(scaled + tl.load(vectors + (NORM + 1) * P + c)[None, :])
        inside = valid[:, None] & (c < S)[None, :]
        tl.store(local + n[:, None] * (5 * S) + c[None, :], x_agg0.to(local.dtype.element_ty), mask=inside)


@triton.jit
def aggregate(
    qkv,
    vectors,
    matrices,
    height,
    width,
    tiles_per_split,
    scratch,
    partials,
    local,
    EPSILON: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    T: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Kernel A: grid (splits, 5, B). x_agg0 goes to `local`, S of the 5S channels of a token of the output."""
    split = tl.program_id(0)
    # the widest windows start first, so that the short jobs fill the end of the launch
    job = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    tokens = height * width
    first = split * tiles_per_split * T
    last = tl.minimum(first + tiles_per_split * T, tokens)
    qkv += batch * tokens * (15 * S)
    scratch += batch * tokens * (4 * S)
    local += batch * tokens * (5 * S)
    partial = partials + (batch * tl.num_programs(0) + split) * (4 * S * (2 + S // 2))
    if job == 0:
        _aggregate_segment(
            qkv, vectors, matrices, scratch, partial + 3 * S * (2 + S // 2), first, last, height, width, 3, S, P, T, CHANNELS
        )
    elif job == 1:
        _aggregate_segment(
            qkv, vectors, matrices, scratch, partial + 2 * S * (2 + S // 2), first, last, height, width, 2, S, P, T, CHANNELS
        )
    elif job == 2:
        _aggregate_local(qkv, vectors, matrices, local, first, last, height, width, EPSILON, S, P, T, CHANNELS)
    elif job == 3:
        _aggregate_segment(
            qkv, vectors, matrices, scratch, partial + S * (2 + S // 2), first, last, height, width, 1, S, P, T, CHANNELS
        )
    else:
        _aggregate_segment(qkv, vectors, matrices, scratch, partial, first, last, height, width, 0, S, P, T, CHANNELS)


@triton.jit
def _merged_context(partials, splits, SCALE: tl.constexpr, S: tl.constexpr, P: tl.constexpr):
    """context * scale / l over all splits of one image and segment: [channel of k, channel of v] FP32, zero between heads."""
    D: tl.constexpr = S // 2
    c = tl.arange(0, P)
    same_head = (c[:, None] // D == c[None, :] // D) & (c < S)[:, None] & (c < S)[None, :]
    maximum = tl.full([P], float("-inf"), tl.float32)
    total = tl.zeros([P], tl.float32)
    context = tl.zeros([P, P], tl.float32)
    for _ in range(splits):
        # padded channels: a finite maximum and a sum of 1 keep infinities out of their arithmetic
        m = tl.load(partials + c, mask=c < S, other=0.0)
        higher = tl.maximum(maximum, m)
        before = tl.exp(maximum - higher)
        now = tl.exp(m - higher)
        total = total * before + tl.load(partials + S + c, mask=c < S, other=1.0) * now
        block = tl.load(partials + 2 * S + c[:, None] * D + (c % D)[None, :], mask=same_head, other=0.0)
        context = context * before[:, None] + block * now[:, None]
        maximum = higher
        partials += 4 * S * (2 + D)
    return context * (SCALE / total)[:, None]


@triton.jit
def _attend_segment(
    qkv,
    vectors,
    matrices,
    scratch,
    partials,
    output,
    splits,
    height,
    width,
    SEGMENT: tl.constexpr,
    SCALE: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    T: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Channels SEGMENT * S .. SEGMENT * S + S of the output for one tile of tokens; the pointers are those of one image."""
    K: tl.constexpr = 3 if SEGMENT == 0 else (5 if SEGMENT == 1 else 7)
    ROW: tl.constexpr = CRPE_0 if SEGMENT == 0 else (CRPE_1 if SEGMENT == 1 else (CRPE_2 if SEGMENT == 2 else CRPE_3))
    c = tl.arange(0, P)
    n = tl.program_id(0) * T + tl.arange(0, T)
    valid = n < height * width
    position = _depthwise(scratch + SEGMENT * S, 4 * S, vectors + ROW * P, n, valid, height, width, 0, S, P, K, T, P)
    position += tl.load(vectors + (CRPE_BIAS + SEGMENT) * P + c)[None, :]
    q = _proxy(qkv + SEGMENT * 3 * S, vectors, matrices, n, valid, height, width, SEGMENT, S, P, T, CHANNELS)
    context = _merged_context(partials + SEGMENT * S * (2 + S // 2), splits, SCALE, S, P)
    half = output.dtype.element_ty
    mixed = _multiply(q.to(half), context.to(half)) + q * position
    inside = valid[:, None] & (c < S)[None, :]
    tl.store(output + n[:, None] * (5 * S) + SEGMENT * S + c[None, :], mixed.to(half), mask=inside)


@triton.jit
def attend(
    qkv,
    vectors,
    matrices,
    scratch,
    partials,
    local,
    height,
    width,
    splits,
    output,
    SCALE: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    T: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Kernel B: grid (tiles of T tokens, 4, B). `local` orders this launch behind the one that wrote x_agg0, and is not read."""
    job = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    tokens = height * width
    qkv += batch * tokens * (15 * S)
    scratch += batch * tokens * (4 * S)
    output += batch * tokens * (5 * S)
    partials += batch * splits * (4 * S * (2 + S // 2))
    if job == 0:
        _attend_segment(qkv, vectors, matrices, scratch, partials, output, splits, height, width, 3, SCALE, S, P, T, CHANNELS)
    elif job == 1:
        _attend_segment(qkv, vectors, matrices, scratch, partials, output, splits, height, width, 2, SCALE, S, P, T, CHANNELS)
    elif job == 2:
        _attend_segment(qkv, vectors, matrices, scratch, partials, output, splits, height, width, 1, SCALE, S, P, T, CHANNELS)
    elif job == 3:
        _attend_segment(qkv, vectors, matrices, scratch, partials, output, splits, height, width, 0, SCALE, S, P, T, CHANNELS)
