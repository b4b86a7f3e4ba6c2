"""GmfGroupMixAttention as three Triton kernels: pack_weights, aggregate (A), attend (B).

The operator and its letters: gmf_edge/ops/group_mix_attention.py. Segments are independent (segment s of q, k, v holds
exactly heads 2s and 2s + 1), so a program works on one segment and one range of tokens.

pack_weights  (pack_weights.py) the 19 weights -> `vectors` [VECTOR_ROWS, P] FP32, a row per window tap, and `matrices` [6, P, P],
              padded with zeros to P = S rounded up to a power of two: a tap's weights are one contiguous load without a mask.
aggregate     segments 0..3: v' -> scratch; k' stays in registers: running softmax over the tokens of one split, that is the
              maximum m, the sum l and the context exp(k' - m).T @ v', in FP32, to `partials`; q' -> channels 0..4S of the output.
              Segment 4: x_agg0 -> channels 4S..5S of the output.
attend        merges the splits' partials exactly; out = q' @ (context * scale / l) + q' * (CRPE(v') + bias), over q'.

q' waits in the output for the second launch: it needs no memory of its own, and the first launch has its programs to give.
Every program of `attend` merges the splits it needs by itself, several at a time: one program that merges for all would have to
be waited for, behind a counter that something has to reset.

Arithmetic: loads and tensor-core operands in the type of qkv; all sums, softmax statistics and LayerNorm in FP32.
Shapes: qkv [B, N, 3C], scratch [B, N, 4S], partials [B, splits, 4, S * (2 + d)] FP32, output [B, N, C]; see
layout.py. Arguments stand in the order inputs, integers, outputs.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def,assignment"
# (a kernel's arguments are pointers and scalars of the GPU language, not Python values; its tuples grow)
# ruff: noqa: RUF005
# (the GPU language joins tuples by +, it has no unpacking inside one)

from __future__ import annotations

import math

import triton
import triton.language as tl

from gmf_edge.kernels import layout
from gmf_edge.kernels.depthwise import depthwise, hard_swish, multiply, places, separable
from gmf_edge.kernels.pack_weights import pack_weights
from gmf_edge.kernels.vector_rows import (
    AGGREGATE_1,
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
)

__all__ = ["aggregate", "attend", "pack_weights"]

# what the compiler may read of the module: constants wrapped as such
BLOCK = tl.constexpr(layout.BLOCK_TOKENS)
LOG2_E = tl.constexpr(math.log2(math.e))


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
    for tile in tl.range((tiles + query) >> query, disable_licm=True):
        start = first + tile * (gap + T // BLOCK)
        if SEGMENT > 0:
            K: tl.constexpr = 2 * SEGMENT + 1
            ROW: tl.constexpr = AGGREGATE_1 if SEGMENT == 1 else (AGGREGATE_2 if SEGMENT == 2 else AGGREGATE_3)
            mixed = separable(
                *(tokens, vectors + ROW * P, matrices + (SEGMENT - 1) * (P * P), start, last, gap, way, height, width),
                *(15 * S, S, P, P, K, 2 * T, T, CHANNELS, True),
            )
            mixed = hard_swish(mixed + tl.load(vectors + (BIAS + SEGMENT - 1) * P + c)[None, :])
        if query == 1:
            place, taken = places(start, last, width, gap, 2 * T, T)
            q_inside = taken[:, None] & (c < S)[None, :]
            if SEGMENT == 0:
                q_source = tokens + place[:, None] * (15 * S) + c[None, :]
                mixed = hard_swish(tl.load(q_source, mask=q_inside, other=0.0).to(tl.float32))
            q_target = output + place[:, None] * (5 * S) + SEGMENT * S + c[None, :]
            tl.store(q_target, mixed.to(output.dtype.element_ty), mask=q_inside)
        else:
            token, valid = places(start, last, width, 0, T, T)
            inside = valid[:, None] & (c < S)[None, :]
            if SEGMENT == 0:
                source = tokens + token[:, None] * (15 * S) + c[None, :]
                k = hard_swish(tl.load(source, mask=inside, other=0.0).to(tl.float32))
                v = hard_swish(tl.load(source + S, mask=inside, other=0.0).to(tl.float32))
            else:
                k, v = tl.split(tl.permute(tl.reshape(mixed, (2, T, P)), (1, 2, 0)))
            v = v.to(scratch.dtype.element_ty)
            tl.store(scratch + token[:, None] * (4 * S) + SEGMENT * S + c[None, :], v, mask=inside)

            # the first block of a split has a token, so the maximum is finite from the first tile on
            k = tl.where(valid[:, None], k, float("-inf"))
            higher = tl.maximum(maximum, tl.max(k, axis=0))
            rescale = tl.exp2(maximum * LOG2_E - higher * LOG2_E)[:, None]
            weight = tl.trans(tl.exp2(k * LOG2_E - (higher * LOG2_E)[None, :]).to(v.dtype))
            total = total * rescale + multiply(weight, tl.full([T, 16], 1.0, v.dtype))
            context = context * rescale + multiply(weight, v)
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
        n, valid = places(start, last, width, 0, 2 * T, 2 * T)
        mixed = tl.zeros([2 * T, P], tl.float32)
        for t in range(3):
            weights = vectors + (LOCAL + t * 9) * P
            matrix = matrices + (3 + t) * (P * P)
            tokens = qkv + (12 + t) * S
            mixed += separable(
                tokens, weights, matrix, start, last, 0, 0, height, width, 15 * S, S, P, P, 3, 2 * T, 2 * T, CHANNELS, True
            )
        # LayerNorm over the S real channels; the padded ones hold zeros and must not enter the variance
        centred = tl.where((c < S)[None, :], mixed - (tl.sum(mixed, axis=1) / S)[:, None], 0.0)
        deviation = tl.sqrt(tl.sum(centred * centred, axis=1) / S + EPSILON)
        scaled = centred / deviation[:, None] * tl.load(vectors + NORM * P + c)[None, :]
        x_agg0 = hard_swish(scaled + tl.load(vectors + (NORM + 1) * P + c)[None, :])
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
    n, valid = places(start, last, width, 0, T, T)
    channel = part * PART
    target = output + n[:, None] * (5 * S) + segment * S + channel + c[None, :]
    inside = valid[:, None] & (c < PART)[None, :]
    half = output.dtype.element_ty
    q = tl.load(target, mask=inside, other=0.0)
    values = scratch + segment * S + channel
    # segments 2 and 3 both have 7 x 7 taps
    weights = vectors + (tl.where(segment == 3, CRPE_3, ROW) * P + channel)
    if CHANNELS == WIDE:
        position = depthwise(values, weights, start, last, 0, 0, height, width, 0, 4 * S, PART, P, K, T, T, CHANNELS, PART == WIDE)
    else:
        position = separable(
            values, weights, matrices, start, last, 0, 0, height, width, 4 * S, PART, P, WIDE, K, T, T, CHANNELS, False
        )
    position += tl.load(vectors + (CRPE_BIAS + segment) * P + channel + c, mask=c < PART, other=0.0)[None, :]
    context = _merged_context(partials + segment * (S * (2 + S // 2)), splits, channel, SCALE, S, PART, WIDE, MERGE)
    mixed = multiply(q, context.to(half)) + q.to(tl.float32) * position
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
