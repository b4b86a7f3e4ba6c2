"""Depthwise windows and pointwise products of a tile of tokens, for the kernels of group_mix_attention.py. Letters: layout.py.

A thread computes BLOCK neighbours of a row of the map: a value, loaded and converted once, serves up to BLOCK taps, a weight
BLOCK tokens. So tiles are made of blocks, numbered row by row; the last block of a row may stick out of the map.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def,assignment"
# (a kernel's arguments are pointers and scalars of the GPU language, not Python values; its tuples grow)
# ruff: noqa: RUF005
# (the GPU language joins tuples by +, it has no unpacking inside one)

from __future__ import annotations

import triton
import triton.language as tl

from gmf_edge.kernels import layout

# what the compiler may read of the module: constants wrapped as such
BLOCK = tl.constexpr(layout.BLOCK_TOKENS)


@triton.jit
def hard_swish(x):
    """x * clamp(x / 6 + 1/2, 0, 1) (arXiv:1905.02244), elementwise."""
    # clamping to 0..1 is part of a multiply-add
    return x * tl.minimum(tl.maximum(x * (1.0 / 6.0) + 0.5, 0.0), 1.0)


@triton.jit
def multiply(a, b):
    """Tensor-core product with FP32 sums; FP32 operands are not rounded to TF32."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _row_and_column(block, width):
    """y of a block, and x of its first token.

    Division by a multiplication with 2^31 / blocks of a row, rounded up: exact while block * blocks of a row < 2^31.
    """
    per_row = (width + BLOCK - 1) // BLOCK
    magic = (2147483647 // per_row + 1).to(tl.uint32)
    y = tl.umulhi((2 * block).to(tl.uint32), magic).to(tl.int32)
    return y, (block - y * per_row) * BLOCK


@triton.jit
def places(first, last, width, gap, ROWS: tl.constexpr, T: tl.constexpr):
    """Token numbers and validity of ROWS slots: two of [ROWS].

    T slots from block `first` on, the next T from `gap` blocks later on. `last` is the first block that is not the program's.
    """
    slot = tl.arange(0, ROWS)
    block = first + slot % T // BLOCK + slot // T * gap
    y, x = _row_and_column(block, width)
    x += slot % BLOCK
    return y * width + x, (block < last) & (x < width)


@triton.jit
def _window_row(
    row,
    inside,
    columns,
    c,
    weights,
    STRIDE: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    CHANNELS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """What one row of a K x K window reads: K + 3 values [R, CHANNELS] FP32 around each block, K weights [1, CHANNELS].

    row points at each block's first token, in the window's row; `inside` [R, 1] says whether that row is in the map, `columns` the
    same of the K + 3 columns.
    """
    FEW: tl.constexpr = R * CHANNELS <= 256
    values = ()
    for j in tl.static_range(K + BLOCK - 1):
        there = inside & columns[j] if WHOLE else inside & columns[j] & (c < S)[None, :]
        values = values + (tl.load(row + (j - K // 2) * STRIDE, mask=there, other=0.0).to(tl.float32),)
    taps = ()
    for dx in tl.static_range(K):
        if FEW:
            # each thread its own: with no more threads than channels the compiler would hand a shared row round, tap after tap
            taps = taps + (tl.load(tl.broadcast_to((weights + dx * P)[None, :], (R, CHANNELS))),)
        else:
            taps = taps + (tl.load(weights + dx * P)[None, :],)
    return values, taps


@triton.jit
def depthwise(
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
    WHOLE: tl.constexpr,
):
    """K x K window around each token of ROWS slots for channels channel .. channel + CHANNELS - 1: [ROWS, CHANNELS] FP32.

    Slots as in places; behind each T of them the channels start `way` elements later: with gap 0 the same window over two
    groups of channels, one below the other.
    tokens points at channel 0 of token 0, STRIDE elements part two tokens; weights points at the first of K * K rows of P.
    WHOLE: no channel of these is beyond S. Outside the map and beyond channel S the values are zero.
    """
    R: tl.constexpr = ROWS // BLOCK
    G: tl.constexpr = T // BLOCK
    tl.static_assert(BLOCK == 4, "four sums are joined below")
    c = channel + tl.arange(0, CHANNELS)
    r = tl.arange(0, R)
    block = first + r % G + r // G * gap
    y, x = _row_and_column(block, width)
    row = tokens + (r // G * way + ((y - K // 2) * width + x) * STRIDE)[:, None] + c[None, :]
    weights += c
    top = tl.where(block < last, y - K // 2, height)[:, None]  # no row of a block that is not the program's is in the map
    rows = height.to(tl.uint32)
    columns = ()
    for j in tl.static_range(K + BLOCK - 1):
        columns = columns + (((x + j >= K // 2) & (x + j < width + K // 2))[:, None],)
    sum_0 = tl.zeros([R, CHANNELS], tl.float32)
    sum_1 = sum_0
    sum_2 = sum_0
    sum_3 = sum_0
    for dy in range(K):
        # unsigned, so that one comparison sees both edges, and one instruction joins it to a column's
        inside = (top + dy).to(tl.uint32) < rows
        line = row + dy * width * STRIDE
        values, taps = _window_row(line, inside, columns, c, weights + dy * (K * P), STRIDE, S, P, K, R, CHANNELS, WHOLE)
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
    WHOLE: tl.constexpr,
    POINTWISE: tl.constexpr,
):
    """What channels channel .. channel + CHANNELS - 1 give to separable: [ROWS, WIDE] FP32."""
    # tensor cores take at least 16 channels: those of a chunk of 8 alternate with zeros
    SPREAD: tl.constexpr = 1 if CHANNELS >= 16 else 2
    i = tl.arange(0, CHANNELS * SPREAD)
    c = tl.arange(0, WIDE)
    spread = depthwise(
        tokens, weights, first, last, gap, way, height, width, channel, STRIDE, S, P, K, ROWS, T, CHANNELS, WHOLE
    ).to(matrix.dtype.element_ty)
    if SPREAD == 2:
        spread = tl.reshape(tl.join(spread, tl.zeros_like(spread)), (ROWS, CHANNELS * SPREAD))
    source = channel + i // SPREAD
    real = (i % SPREAD == 0)[:, None]
    if POINTWISE:
        part = tl.load(matrix + source[:, None] * P + c[None, :], mask=real, other=0.0)
    else:
        part = (real & (source[:, None] == c[None, :])).to(spread.dtype)
    return multiply(spread, part)


@triton.jit
def separable(
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

    CHANNELS at a time, because wide segments would not fit into the registers at once, then the rest: no channel is computed in
    vain where CHANNELS <= S and the rest is 8, 16 or 32. Without POINTWISE the chunks are put side by side, by the same product
    with a matrix of zeros and ones.
    """
    REST: tl.constexpr = S % CHANNELS
    REST_WIDE: tl.constexpr = 8 if REST <= 8 else (16 if REST <= 16 else (32 if REST <= 32 else 64))
    mixed = tl.zeros([ROWS, WIDE], tl.float32)
    if CHANNELS > S:
        mixed = _chunk(
            *(tokens, weights, matrix, first, last, gap, way, height, width, 0),
            *(STRIDE, S, P, WIDE, K, ROWS, T, CHANNELS, False, POINTWISE),
        )
    else:
        for channel in range(0, S - REST, CHANNELS):
            mixed += _chunk(
                *(tokens, weights, matrix, first, last, gap, way, height, width, channel),
                *(STRIDE, S, P, WIDE, K, ROWS, T, CHANNELS, True, POINTWISE),
            )
        if REST > 0:
            mixed += _chunk(
                *(tokens, weights, matrix, first, last, gap, way, height, width, S - REST),
                *(STRIDE, S, P, WIDE, K, ROWS, T, REST_WIDE, REST == REST_WIDE, POINTWISE),
            )
    return mixed
