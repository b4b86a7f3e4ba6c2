"""Geometry of the GmfGroupMixAttention kernels: memory layouts, tile sizes, splits. Plain integers; no triton, no GPU.

Letters: B batch, N tokens, C channels, S = C / 5 channels of a segment, d = S / 2 of a head, P = S padded to a power of two.
plugins/gma/geometry.h is the same in C++; tests/plugins compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass

from gmf_edge.errors import KernelError

NUM_SEGMENTS = 5
MIXED_SEGMENTS = 4
# tensor cores multiply tiles of at least 16
MIN_PADDED_DIM = 16

# first row of each group in `vectors` [VECTOR_ROWS, P] FP32; a window of k takes k * k rows, tap by tap
DEPTHWISE_ROW = (0, 9, 34)  # windows 3, 5, 7 of segments 1, 2, 3
BIAS_ROW = 83  # of segments 1, 2, 3
LOCAL_ROW = 86  # window 3 of segment 4: q, k, v
NORM_ROW = 113  # weight, bias
CRPE_ROW = (115, 124, 149, 198)  # segments 0..3 with windows 3, 5, 7, 7; segment 2's first head has its 5 x 5 inside 7 x 7
CRPE_BIAS_ROW = 247  # of segments 0..3
VECTOR_ROWS = 251
# `matrices` [MATRIX_COUNT, P, P], input channel first: pointwise of segments 1, 2, 3, then of segment 4 for q, k, v
MATRIX_COUNT = 6

# more splits than this cost more in merging than they gain
MAX_SPLITS = 32


def padded_dim(segment_dim: int) -> int:
    """P, the power of two that holds S channels.

    Raises:
        KernelError: S that no GroupMixFormer has.
    """
    if segment_dim < 2 or segment_dim % 2:
        raise KernelError(
            f"segments of {segment_dim} channels have no two equal heads", "use an embedding width that is a multiple of 10"
        )
    return max(MIN_PADDED_DIM, 1 << (segment_dim - 1).bit_length())


@dataclass(frozen=True)
class Tile:
    """Compile-time shape of a program.

    Attributes:
        tokens: how many a program holds at once.
        channels: how many of a segment's channels a depthwise window in front of a pointwise convolution takes at once.
        warps: of 32 threads.
        stages: of software pipelining.
    """

    tokens: int
    channels: int
    warps: int
    stages: int


def tile_of(segment_dim: int) -> Tile:
    """The tile for a width: as large as ptxas holds without spilling on sm_80 to sm_90 (the table is in plugins/README.md).

    Channels go in steps of 16, or of 32 where none of them idles and none spills (S = 64, 96). One stage: a second one
    multiplies the shared memory, and the loops over taps have little to prefetch.
    """
    padded = padded_dim(segment_dim)
    channels = 32 if segment_dim >= 64 and segment_dim % 32 == 0 else 16
    return Tile(tokens=64 if padded <= 64 else 16, channels=channels, warps=4 if padded <= 16 else 8, stages=1)


@dataclass(frozen=True)
class Geometry:
    """One launch of the kernels.

    Attributes:
        batch, tokens, segment_dim: B, N, S.
        tile_tokens: tokens that a program holds at once.
        splits: how many programs share the tokens of one image and segment in `aggregate`; none is empty.
        tiles_per_split: tiles that each of them walks through.
    """

    batch: int
    tokens: int
    segment_dim: int
    tile_tokens: int
    splits: int
    tiles_per_split: int

    @property
    def padded_dim(self) -> int:
        """P."""
        return padded_dim(self.segment_dim)

    @property
    def partial_floats(self) -> int:
        """FP32 numbers of one (image, split, segment): m [S], l [S], context [S, d]."""
        return self.segment_dim * (2 + self.segment_dim // 2)

    @property
    def pack_grid(self) -> tuple[int, int, int]:
        return (VECTOR_ROWS + MATRIX_COUNT, 1, 1)

    @property
    def aggregate_grid(self) -> tuple[int, int, int]:
        return (self.splits, NUM_SEGMENTS, self.batch)

    @property
    def attend_grid(self) -> tuple[int, int, int]:
        return (-(-self.tokens // self.tile_tokens), MIXED_SEGMENTS, self.batch)

    @property
    def vectors_shape(self) -> tuple[int, int]:
        return (VECTOR_ROWS, self.padded_dim)

    @property
    def matrices_shape(self) -> tuple[int, int, int]:
        return (MATRIX_COUNT, self.padded_dim, self.padded_dim)

    @property
    def scratch_shape(self) -> tuple[int, int, int]:
        """v' of segments 0..3."""
        return (self.batch, self.tokens, MIXED_SEGMENTS * self.segment_dim)

    @property
    def partials_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.splits, MIXED_SEGMENTS, self.partial_floats)


def plan(batch: int, tokens: int, segment_dim: int, tile_tokens: int, multiprocessors: int) -> Geometry:
    """The launch geometry for one shape on a device with `multiprocessors` multiprocessors.

    Enough splits to give every multiprocessor about four programs of `aggregate`, no more than there are tiles, none empty.

    Raises:
        KernelError: a shape without tokens or images.
    """
    if batch < 1 or tokens < 1:
        raise KernelError(f"batch {batch} with {tokens} tokens has nothing to compute", "give at least one image of one token")
    padded_dim(segment_dim)
    tiles = -(-tokens // tile_tokens)
    wanted = -(-4 * multiprocessors // (NUM_SEGMENTS * batch))
    tiles_per_split = -(-tiles // max(1, min(wanted, tiles, MAX_SPLITS)))
    return Geometry(batch, tokens, segment_dim, tile_tokens, -(-tiles // tiles_per_split), tiles_per_split)
