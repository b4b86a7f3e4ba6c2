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

import math

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
BLOCK = tl.constexpr(layout.BLOCK_TOKENS)
LOG2_E = tl.constexpr(math.log2(math.e))


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
    # clamping to 0..1 is part of a multiply-add
    return x * tl.minimum(tl.maximum(x * (1.0 / 6.0) + 0.5, 0.0), 1.0)


@triton.jit
def _multiply(a, b):
    """Tensor-core product with FP32 sums; FP32 operands are not rounded to TF32."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _row_and_column(block, width):
    """y of a block of BLOCK neighbours in a row of the map, and x of its first token; the last block of a row may stick out of the map.

    Division by a multiplication with 2^31 / blocks of a row, rounded up: exact while block * blocks of a row < 2^31.
    """
    per_row = (width + BLOCK - 1) // BLOCK
    magic = (2147483647 // per_row + 1).to(tl.uint32)
    y = tl.umulhi((2 * block).to(tl.uint32), magic).to(tl.int32)
    return y, (block - y * per_row) * BLOCK


@triton.jit
def _places(first, last, width, gap, ROWS: tl.constexpr, T: tl.constexpr):
    """Token numbers and validity of ROWS slots: two of [ROWS]. T slots from block `first` on, the next T from `gap` blocks later on.

    `last` is the first block that is not the program's.
    """
    slot = tl.arange(0, ROWS)
    block = first + slot % T // BLOCK + slot // T * gap
    y, x = _row_and_column(block, width)
    x += slot % BLOCK
    return y * width + x, (block < last) & (x < width)


@triton.jit
def _window_row(
    row,
    mine,
    x,
    top,
    c,
    weights,
    height,
    width,
    dy,
    STRIDE: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    K: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """What row dy of a K x K window reads: K + 3 values [R, CHANNELS] FP32 around each block, K weights [1, CHANNELS].

    row points at the first block's token in the window's first row, which is row `top` of the map; `mine` are the blocks to compute.
    """
    row_ok = mine & (top + dy >= 0) & (top + dy < height)
    row += dy * width * STRIDE
    weights += dy * (K * P)
    values = ()
    for j in tl.static_range(K + BLOCK - 1):
        ok = row_ok & (x + j >= K // 2) & (x + j < width + K // 2)
        inside = ok[:, None] if WHOLE else ok[:, None] & (c < S)[None, :]
        values = values + (tl.load(row + (j - K // 2) * STRIDE, mask=inside, other=0.0).to(tl.float32),)
    taps = ()
    for dx in tl.static_range(K):
        taps = taps + (tl.load(weights + dx * P)[None, :],)
    return values, taps


@triton.jit
def _depthwise(
    tokens,
    weights,
    first,
    last,
    gap,
    way,
    height,
    width,
    channel,
    STRIDE: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    T: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """K x K window around each token of ROWS slots for channels channel .. channel + CHANNELS - 1: [ROWS, CHANNELS] FP32.

    A thread holds BLOCK neighbours of a row, so that a value, loaded and converted once, serves up to BLOCK taps, and a weight BLOCK
    tokens. Slots as in _places; behind each T of them the channels start `way` elements later: with gap 0 the same window over two
    groups of channels, one below the other.
    tokens points at channel 0 of token 0, STRIDE elements part two tokens; weights points at the first of K * K rows of P.
    Outside the map and beyond channel S the values are zero.
    """
    R: tl.constexpr = ROWS // BLOCK
    G: tl.constexpr = T // BLOCK
    # no channel of the chunk is beyond S
    WHOLE: tl.constexpr = CHANNELS <= S
    tl.static_assert(BLOCK == 4, "four sums are joined below")
    c = channel + tl.arange(0, CHANNELS)
    r = tl.arange(0, R)
    block = first + r % G + r // G * gap
    y, x = _row_and_column(block, width)
    row = tokens + (r // G * way + ((y - K // 2) * width + x) * STRIDE)[:, None] + c[None, :]
    weights += c
    sum_0 = tl.zeros([R, CHANNELS], tl.float32)
    sum_1 = sum_0
    sum_2 = sum_0
    sum_3 = sum_0
    for dy in range(K):
        values, taps = _window_row(
            row, block < last, x, y - K // 2, c, weights, height, width, dy, STRIDE, S, P, K, WHOLE
        )
        for dx in tl.static_range(K):
            sum_0 += values[dx] * taps[dx]
            sum_1 += values[dx + 1] * taps[dx]
            sum_2 += values[dx + 2] * taps[dx]
            sum_3 += values[dx + 3] * taps[dx]
    # [R, CHANNELS] of each of the four -> a row a token, in the order of the slots
    both = tl.join(tl.join(sum_0, sum_1), tl.join(sum_2, sum_3))
    return tl.reshape(tl.permute(both, (0, 3, 2, 1)), (ROWS, CHANNELS))


@triton.jit
def _chunk(
    tokens,
    weights,
    matrix,
    first,
    last,
    gap,
    way,
    height,
    width,
    channel,
    STRIDE: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    WIDE: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    T: tl.constexpr,
    CHANNELS: tl.constexpr,
    POINTWISE: tl.constexpr,
):
    """What channels channel .. channel + CHANNELS - 1 give to _separable: [ROWS, WIDE] FP32."""
    # tensor cores take at least 16 channels: those of a chunk of 8 alternate with zeros
    SPREAD: tl.constexpr = 1 if CHANNELS >= 16 else 2
    i = tl.arange(0, CHANNELS * SPREAD)
    c = tl.arange(0, WIDE)
    spread = _depthwise(
        tokens, weights, first, last, gap, way, height, width, channel, STRIDE, S, P, K, ROWS, T, CHANNELS
    ).to(matrix.dtype.element_ty)
    if SPREAD == 2:
        spread = tl.reshape(tl.join(spread, tl.zeros_like(spread)), (ROWS, CHANNELS * SPREAD))
    source = channel + i // SPREAD
    real = (i % SPREAD == 0)[:, None]
    if POINTWISE:
        part = tl.load(matrix + source[:, None] * P + c[None, :], mask=real, other=0.0)
    else:
        part = (real & (source[:, None] == c[None, :])).to(spread.dtype)
    return _multiply(spread, part)


@triton.jit
def _separable(
    tokens,
    weights,
    matrix,
    first,
    last,
    gap,
    way,
    height,
    width,
    STRIDE: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    WIDE: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    T: tl.constexpr,
    CHANNELS: tl.constexpr,
    POINTWISE: tl.constexpr,
):
    """Depthwise K x K of S channels, then pointwise [in, out]: [ROWS, WIDE] FP32.

    CHANNELS at a time, because wide segments would not fit into the registers at once, then the rest: no channel is computed in vain
    where CHANNELS <= S. Without POINTWISE the chunks are put side by side, by the same product with a matrix of zeros and ones.
    """
    REST: tl.constexpr = S % CHANNELS
    mixed = tl.zeros([ROWS, WIDE], tl.float32)
    if CHANNELS > S:
        mixed = _chunk(
            *(tokens, weights, matrix, first, last, gap, way, height, width, 0),
            *(STRIDE, S, P, WIDE, K, ROWS, T, CHANNELS, POINTWISE),
        )
    else:
        for channel in range(0, S - REST, CHANNELS):
            mixed += _chunk(
                *(tokens, weights, matrix, first, last, gap, way, height, width, channel),
                *(STRIDE, S, P, WIDE, K, ROWS, T, CHANNELS, POINTWISE),
            )
        if REST > 0:
            mixed += _chunk(
                *(tokens, weights, matrix, first, last, gap, way, height, width, S - REST),
                *(STRIDE, S, P, WIDE, K, ROWS, T, REST, POINTWISE),
            )
    return mixed


@triton.jit
def _aggregate_segment(
    qkv,
    vectors,
    matrices,
    scratch,
    partial,
    output,
    query,
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
    """One of the segments 0..3 for blocks first..last - 1; the pointers are those of one image.

    query 0: v' to scratch, the softmax statistics to `partial`, T tokens of k' and v' at a time. query 1: q' of 2T tokens at a time
    to the place in the output that `attend` will overwrite. The same code computes both: k' above v', or T tokens above the next T.
    """
    D: tl.constexpr = S // 2
    c = tl.arange(0, P)
    gap = query * (T // BLOCK)
    way = (1 - query) * S
    tokens = qkv + (SEGMENT * 3 * S + way)
    maximum = tl.full([P], float("-inf"), tl.float32)
    # sums by the tensor cores as well, 16 times the same column
    total = tl.zeros([P, 16], tl.float32)
    context = tl.zeros([P, P], tl.float32)  # [channel of k, channel of v]
    tiles = (last - first + T // BLOCK - 1) // (T // BLOCK)
    # q: twice as many tokens a turn
    for tile in range(0, (tiles + query) >> query):
        start = first + tile * (gap + T // BLOCK)
        if SEGMENT == 0:
            n, there = _places(start, last, width, gap, 2 * T, T)
            source = n * (15 * S) + tl.arange(0, 2 * T) // T * way
            inside = there[:, None] & (c < S)[None, :]
            mixed = tl.load(tokens + source[:, None] + c[None, :], mask=inside, other=0.0).to(tl.float32)
        else:
            K: tl.constexpr = 2 * SEGMENT + 1
            ROW: tl.constexpr = AGGREGATE_1 if SEGMENT == 1 else (AGGREGATE_2 if SEGMENT == 2 else AGGREGATE_3)
            weights = vectors + ROW * P
            matrix = matrices + (SEGMENT - 1) * (P * P)
            mixed = _separable(
                tokens, weights, matrix, start, last, gap, way, height, width, 15 * S, S, P, P, K, 2 * T, T, CHANNELS, True
            )
            mixed += tl.load(vectors + (BIAS + SEGMENT - 1) * P + c)[None, :]
        mixed = _hard_swish(mixed)
        if query == 1:
            place, taken = _places(start, last, width, gap, 2 * T, T)
            q_target = output + place[:, None] * (5 * S) + SEGMENT * S + c[None, :]
            tl.store(q_target, mixed.to(output.dtype.element_ty), mask=taken[:, None] & (c < S)[None, :])
        else:
            token, valid = _places(start, last, width, 0, T, T)
            k, v = tl.split(tl.permute(tl.reshape(mixed, (2, T, P)), (1, 2, 0)))
            v = v.to(scratch.dtype.element_ty)
            v_target = scratch + token[:, None] * (4 * S) + SEGMENT * S + c[None, :]
            tl.store(v_target, v, mask=valid[:, None] & (c < S)[None, :])

            # the first block of a split has a token, so the maximum is finite from the first tile on
            k = tl.where(valid[:, None], k, float("-inf"))
            higher = tl.maximum(maximum, tl.max(k, axis=0))
            rescale = tl.exp2(maximum * LOG2_E - higher * LOG2_E)[:, None]
            weight = tl.trans(tl.exp2(k * LOG2_E - (higher * LOG2_E)[None, :]).to(v.dtype))
            total = total * rescale + _multiply(weight, tl.full([T, 16], 1.0, v.dtype))
            context = context * rescale + _multiply(weight, v)
            maximum = higher

    if query == 0:
        tl.store(partial + c, maximum, mask=c < S)
        column = tl.arange(0, 16)
        tl.store(partial + S + c[:, None] + column[None, :], total, mask=(c < S)[:, None] & (column == 0)[None, :])
        # only the two diagonal blocks: a head's k meets its own v
        same_head = (c[:, None] // D == c[None, :] // D) & (c < S)[:, None] & (c < S)[None, :]
        tl.store(partial + 2 * S + c[:, None] * D + (c % D)[None, :], context, mask=same_head)


@triton.jit
def _aggregate_local(
    qkv,
    vectors,
    matrices,
    output,
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
    """x_agg0 of blocks first..last - 1, 2T tokens at a time, to channels 4S..5S of the output; the pointers are those of one image."""
    c = tl.arange(0, P)
    for start in range(first, last, 2 * T // BLOCK):
        n, valid = _places(start, last, width, 0, 2 * T, 2 * T)
        mixed = tl.zeros([2 * T, P], tl.float32)
        for t in range(3):
            weights = vectors + (LOCAL + t * 9) * P
            matrix = matrices + (3 + t) * (P * P)
            tokens = qkv + (12 + t) * S
            mixed += _separable(
                tokens, weights, matrix, start, last, 0, 0, height, width, 15 * S, S, P, P, 3, 2 * T, 2 * T, CHANNELS, True
            )
        # LayerNorm over the S real channels; the padded ones hold zeros and must not enter the variance
        centred = tl.where((c < S)[None, :], mixed - (tl.sum(mixed, axis=1) / S)[:, None], 0.0)
        deviation = tl.sqrt(tl.sum(centred * centred, axis=1) / S + EPSILON)
        scaled = centred / deviation[:, None] * tl.load(vectors + NORM * P + c)[None, :]
        x_agg0 = _hard_swish(scaled + tl.load(vectors + (NORM + 1) * P + c)[None, :])
        inside = valid[:, None] & (c < S)[None, :]
        tl.store(output + n[:, None] * (5 * S) + 4 * S + c[None, :], x_agg0.to(output.dtype.element_ty), mask=inside)


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
    output,
    EPSILON: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    T: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Kernel A: grid (splits, 9, B)."""
    split = tl.program_id(0)
    # the widest windows start first, so that the short jobs fill the end of the launch: k and v of segments 3 and 2, q of both,
    # x_agg0, k and v of 1, q of 1, k and v of 0, q of 0
    job = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    query = ((job == 2) | (job == 3) | (job == 6) | (job == 8)).to(tl.int32)
    # q and x_agg0 need half the programs: every second one takes the tokens of two splits
    double = query + (job == 4).to(tl.int32)
    if split * double % 2 == 0:
        tokens = height * width
        per_split = tiles_per_split * (T // BLOCK)
        first = split * per_split
        last = tl.minimum(first + (1 + double) * per_split, height * ((width + BLOCK - 1) // BLOCK))
        qkv += batch * tokens * (15 * S)
        scratch += batch * tokens * (4 * S)
        output += batch * tokens * (5 * S)
        PARTIAL: tl.constexpr = S * (2 + S // 2)
        partial = partials + (batch * tl.num_programs(0) + split) * (4 * PARTIAL)
        if (job == 0) | (job == 2):
            partial += 3 * PARTIAL
            _aggregate_segment(
                qkv, vectors, matrices, scratch, partial, output, query, first, last, height, width, 3, S, P, T, CHANNELS
            )
        elif (job == 1) | (job == 3):
            partial += 2 * PARTIAL
            _aggregate_segment(
                qkv, vectors, matrices, scratch, partial, output, query, first, last, height, width, 2, S, P, T, CHANNELS
            )
        elif job == 4:
            _aggregate_local(qkv, vectors, matrices, output, first, last, height, width, EPSILON, S, P, T, CHANNELS)
        elif job <= 6:
            partial += PARTIAL
            _aggregate_segment(
                qkv, vectors, matrices, scratch, partial, output, query, first, last, height, width, 1, S, P, T, CHANNELS
            )
        else:
            _aggregate_segment(
                qkv, vectors, matrices, scratch, partial, output, query, first, last, height, width, 0, S, P, T, CHANNELS
            )


@triton.jit
def _merged_context(
    partials, splits, first, SCALE: tl.constexpr, S: tl.constexpr, PART: tl.constexpr, P: tl.constexpr, MERGE: tl.constexpr
):
    """context * scale / l over all splits for channels first .. first + PART - 1 of a segment of one image: [P, P] FP32.

    [channel of k, channel of v], zero between heads. MERGE splits at a time, whose loads do not wait for each other.
    """
    D: tl.constexpr = S // 2
    c = tl.arange(0, P)
    real = c < PART
    same_head = (c[:, None] // D == c[None, :] // D) & real[:, None] & real[None, :]
    partials += first
    block = 2 * S - first + (first + c)[:, None] * D + (c % D)[None, :]
    maximum = tl.full([P], float("-inf"), tl.float32)
    total = tl.zeros([P], tl.float32)
    context = tl.zeros([P, P], tl.float32)
    for group in range(0, splits, MERGE):
        m = ()
        sums = ()
        contexts = ()
        higher = maximum
        for i in tl.static_range(MERGE):
            there = real & (group + i < splits)
            m = m + (tl.load(partials + i * (4 * S * (2 + D)) + c, mask=there, other=float("-inf")),)
            sums = sums + (tl.load(partials + i * (4 * S * (2 + D)) + S + c, mask=there, other=0.0),)
            blocks = partials + i * (4 * S * (2 + D)) + block
            contexts = contexts + (tl.load(blocks, mask=same_head & (group + i < splits), other=0.0),)
            higher = tl.maximum(higher, m[i])
        # padded channels: a finite maximum keeps infinities out of their arithmetic
        higher = tl.where(real, higher, 0.0)
        before = tl.exp(maximum - higher)
        total = total * before
        context = context * before[:, None]
        for i in tl.static_range(MERGE):
            now = tl.exp(m[i] - higher)
            total += sums[i] * now
            context += contexts[i] * now[:, None]
        maximum = higher
        partials += MERGE * (4 * S * (2 + D))
    # padded channels have no sum
    return context * (SCALE / tl.where(real, total, 1.0))[:, None]


@triton.jit
def _attend_part(
    vectors,
    matrices,
    scratch,
    partials,
    splits,
    segment,
    part,
    height,
    width,
    output,
    K: tl.constexpr,
    SCALE: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    T: tl.constexpr,
    CHANNELS: tl.constexpr,
    PARTS: tl.constexpr,
    MERGE: tl.constexpr,
):
    """S / PARTS channels of a segment of the output for one tile of tokens; the pointers are those of one image."""
    # of the part: its channels, and their number padded as P is
    PART: tl.constexpr = S // PARTS
    WIDE: tl.constexpr = P // PARTS
    ROW: tl.constexpr = CRPE_0 if K == 3 else (CRPE_1 if K == 5 else CRPE_2)
    c = tl.arange(0, WIDE)
    start = tl.program_id(0) * (T // BLOCK)
    last = height * ((width + BLOCK - 1) // BLOCK)
    n, valid = _places(start, last, width, 0, T, T)
    channel = part * PART
    target = output + n[:, None] * (5 * S) + segment * S + channel + c[None, :]
    inside = valid[:, None] & (c < PART)[None, :]
    half = output.dtype.element_ty
    q = tl.load(target, mask=inside, other=0.0)
    values = scratch + segment * S + channel
    # segments 2 and 3 both have 7 x 7 taps
    weights = vectors + (tl.where(segment == 3, CRPE_3, ROW) * P + channel)
    if CHANNELS == WIDE:
        position = _depthwise(
            values, weights, start, last, 0, 0, height, width, 0, 4 * S, PART, P, K, T, T, CHANNELS
        )
    else:
        position = _separable(
            values, weights, matrices, start, last, 0, 0, height, width, 4 * S, PART, P, WIDE, K, T, T, CHANNELS, False
        )
    position += tl.load(vectors + (CRPE_BIAS + segment) * P + channel + c, mask=c < PART, other=0.0)[None, :]
    context = _merged_context(partials + segment * (S * (2 + S // 2)), splits, channel, SCALE, S, PART, WIDE, MERGE)
    mixed = _multiply(q, context.to(half)) + q.to(tl.float32) * position
    # every thread has read its share of q' before another writes over it
    tl.debug_barrier()
    tl.store(target, mixed.to(half), mask=inside)


@triton.jit
def attend(
    vectors,
    matrices,
    scratch,
    partials,
    height,
    width,
    splits,
    output,
    SCALE: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    T: tl.constexpr,
    CHANNELS: tl.constexpr,
    PARTS: tl.constexpr,
    MERGE: tl.constexpr,
):
    """Kernel B: grid (tiles of T tokens, 4 * PARTS, B). q' stands in the output and is overwritten."""
    segment = 3 - tl.program_id(1) // PARTS
    part = tl.program_id(1) % PARTS
    batch = tl.program_id(2).to(tl.int64)
    tokens = height * width
    scratch += batch * tokens * (4 * S)
    output += batch * tokens * (5 * S)
    partials += batch * splits * (4 * S * (2 + S // 2))
    if segment >= 2:
        _attend_part(
            *(vectors, matrices, scratch, partials, splits, segment, part, height, width, output),
            *(7, SCALE, S, P, T, CHANNELS, PARTS, MERGE),
        )
    elif segment == 1:
        _attend_part(
            *(vectors, matrices, scratch, partials, splits, segment, part, height, width, output),
            *(5, SCALE, S, P, T, CHANNELS, PARTS, MERGE),
        )
    else:
        _attend_part(
            *(vectors, matrices, scratch, partials, splits, segment, part, height, width, output),
            *(3, SCALE, S, P, T, CHANNELS, PARTS, MERGE),
        )
