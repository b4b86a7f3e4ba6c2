"""Geometry of the GmfGroupMixAttention kernels: memory layouts, tile sizes, splits. Plain integers; no triton, no GPU.

Letters: B batch, N tokens, C channels, S = C / 5 channels of a segment, d = S / 2 of a head, P = S padded to a power of two.
plugins/gma/geometry.h is the same in C++; tests/plugins compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass

from gmf_edge.errors import KernelError

NUM_SEGMENTS = 5
MIXED_SEGMENTS = 4
# programs of `aggregate` for one split: k and v of four segments, q of four, x_agg0; of q and x_agg0 those of every
# second split, for the tokens of two
AGGREGATE_JOBS = 9
DOUBLE_JOBS = (2, 3, 4, 6, 8)
# as many programs as there are for each split on average, rounded down
BUSY_JOBS = 6
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

# neighbours of a row that one thread computes
BLOCK_TOKENS = 4
# by the number of programs that there are: few, or enough to fill the device
TILINGS = ("small", "large")
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
    """Compile-time shape of a program of one kernel.

    Attributes:
        tokens: how many slots for tokens a program holds at once; in `aggregate` twice as many of q and of x_agg0.
        channels: how many of a segment's channels a depthwise window takes at once.
        warps: of 32 threads.
        registers: most of a thread, or None for the compiler's choice.
    """

    tokens: int
    channels: int
    warps: int
    registers: int | None = None

    @property
    def options(self) -> dict[str, int]:
        """For Triton's compiler. One stage of software pipelining: a second multiplies the shared memory and gains nothing."""
        return {"num_warps": self.warps, "num_stages": 1} | ({} if self.registers is None else {"maxnreg": self.registers})


@dataclass(frozen=True)
class Tiling:
    """One way to cut the work of both launches; a kernel is compiled once for each.

    Attributes:
        name: of TILINGS.
        aggregate, attend: the tiles of the two kernels.
        parts: programs of `attend` that share the channels of a segment; 2 is one for each head.
        merge: splits whose sums `attend` loads at once.
    """

    name: str
    aggregate: Tile
    attend: Tile
    parts: int
    merge: int

    def tile_of(self, kernel: str) -> Tile:
        """The tile of `aggregate` or `attend`."""
        return self.attend if kernel == "attend" else self.aggregate

    def constants_of(self, kernel: str, segment_dim: int) -> dict[str, int]:
        """The compile-time arguments of `aggregate` or `attend` by name, without SCALE and EPSILON."""
        tile = self.tile_of(kernel)
        constants = {"S": segment_dim, "P": padded_dim(segment_dim), "T": tile.tokens, "CHANNELS": tile.channels}
        return constants | ({"PARTS": self.parts, "MERGE": self.merge} if kernel == "attend" else {})


# by S: (tokens, channels, warps, and where the compiler would rather spill, the most registers) of aggregate and of attend, parts,
# merge
SMALL = {
    8: ((128, 8, 4), (128, 8, 2), 1, 8),
    16: ((64, 16, 4), (64, 16, 2), 1, 8),
    32: ((32, 32, 4), (32, 32, 2), 1, 8),
    40: ((16, 64, 4), (16, 32, 1), 2, 4),
    48: ((16, 64, 4), (16, 32, 1), 2, 4),
    64: ((16, 64, 4), (16, 32, 1), 2, 4),
    72: ((16, 128, 8), (16, 64, 2), 2, 2),
    96: ((16, 128, 8), (16, 64, 2), 2, 2),
}
LARGE = {
    8: ((256, 8, 4), (256, 8, 2, 200), 1, 2),
    16: ((128, 16, 4), (128, 16, 2, 200), 1, 2),
    32: ((64, 32, 4), (128, 32, 4), 1, 2),
    40: ((128, 32, 8), (128, 32, 4), 1, 1),
    48: ((64, 32, 4), (128, 32, 4), 1, 1),
    64: ((32, 64, 4), (64, 64, 4), 1, 1),
    72: ((32, 128, 8), (128, 32, 4), 2, 1),
    96: ((32, 128, 8), (64, 64, 4), 2, 1),
}


def tilings_of(segment_dim: int, dtype: str = "fp16") -> tuple[Tiling, Tiling]:
    """The tilings for a width and type, in the order of TILINGS: the rows of the next width that has them, for others than the variants'.

    FP32 takes twice the registers and shared memory of a tile: both of its tilings have the small tiles.

    Raises:
        KernelError: S that no GroupMixFormer has.
    """
    padded_dim(segment_dim)
    width = min((known for known in SMALL if known >= segment_dim), default=max(SMALL))
    small, large = (
        Tiling(name, Tile(*aggregate), Tile(*attend), parts, merge)
        for name, (aggregate, attend, parts, merge) in (
            ("small", SMALL[width]),
            ("large", (SMALL if dtype == "fp32" else LARGE)[width]),
        )
    )
    return small, large


def blocks_of(height: int, width: int) -> int:
    """How many blocks of BLOCK_TOKENS neighbours of a row cover a map."""
    return height * -(-width // BLOCK_TOKENS)


@dataclass(frozen=True)
class Geometry:
    """One launch of the kernels.

    Attributes:
        batch, height, width, segment_dim: B, H, W, S.
        tiling: how the work is cut.
        splits: how many programs share the tokens of one image and segment in `aggregate`; none is empty.
        tiles_per_split: tiles that each of them walks through.
    """

    batch: int
    height: int
    width: int
    segment_dim: int
    tiling: Tiling
    splits: int
    tiles_per_split: int

    @property
    def tokens(self) -> int:
        """N."""
        return self.height * self.width

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
        return (self.splits, AGGREGATE_JOBS, self.batch)

    @property
    def aggregate_programs(self) -> int:
        """Programs of `aggregate` that have something to do."""
        doubled = len(DOUBLE_JOBS)
        return self.batch * ((AGGREGATE_JOBS - doubled) * self.splits + doubled * -(-self.splits // 2))

    @property
    def attend_grid(self) -> tuple[int, int, int]:
        tiles = tiles_of(self.height, self.width, self.tiling.attend.tokens)
        return (tiles, MIXED_SEGMENTS * self.tiling.parts, self.batch)

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


def tiles_of(height: int, width: int, tile_tokens: int) -> int:
    """How many tiles of `tile_tokens` slots cover a map."""
    return -(-blocks_of(height, width) // (tile_tokens // BLOCK_TOKENS))


def plan(batch: int, height: int, width: int, segment_dim: int, tiling: Tiling, multiprocessors: int) -> Geometry:
    """The launch geometry for one shape and tiling on a device with `multiprocessors` multiprocessors.

    Enough splits to give every multiprocessor about four programs of `aggregate`, no more than there are tiles, none empty.

    Raises:
        KernelError: a shape without tokens or images.
    """
    if batch < 1 or height < 1 or width < 1:
        raise KernelError(
            f"batch {batch} of {height} x {width} tokens has nothing to compute", "give at least one image of one token"
        )
    padded_dim(segment_dim)
    tiles = tiles_of(height, width, tiling.aggregate.tokens)
    wanted = -(-4 * multiprocessors // (BUSY_JOBS * batch))
    tiles_per_split = -(-tiles // max(1, min(wanted, tiles, MAX_SPLITS)))
    return Geometry(batch, height, width, segment_dim, tiling, -(-tiles // tiles_per_split), tiles_per_split)


def fills_the_device(batch: int, height: int, width: int, large_tokens: int, multiprocessors: int) -> bool:
    """Whether tiles of `large_tokens` slots alone give every multiprocessor enough programs of `aggregate`."""
    return batch * BUSY_JOBS * tiles_of(height, width, large_tokens) >= 2 * multiprocessors


def choose_tiling(batch: int, height: int, width: int, segment_dim: int, multiprocessors: int, dtype: str = "fp16") -> Tiling:
    """The tiling for one shape and type on a device: the large one where it fills the device, else the small one."""
    small, large = tilings_of(segment_dim, dtype)
    return large if fills_the_device(batch, height, width, large.aggregate.tokens, multiprocessors) else small
