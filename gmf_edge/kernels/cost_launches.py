"""The launches of one attention block as a device gets them: which image, which grid, which integers; and the bytes they move.

The one place of the cost tool that knows layout.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gmf_edge.kernels.compile import KernelImage
from gmf_edge.kernels.layout import Geometry, choose_tiling, plan, tilings_of

# launches of a block whose weights are packed
LAUNCHES = ("aggregate", "attend")
# the map whose trip counts weigh a kernel's loops: the third stage at 224
REFERENCE_SIZE = 14


@dataclass(frozen=True)
class Launch:
    """One launch.

    Attributes:
        image: what is launched.
        grid: programs in three dimensions; the second is the job, the third the image of the batch.
        integers: the kernel's integer arguments by name.
        programs: how many of the grid's have something to do.
    """

    image: KernelImage
    grid: tuple[int, int, int]
    integers: Mapping[str, int]
    programs: int


@dataclass(frozen=True)
class Block:
    """Both launches of a block, bytes of both, and the floor: qkv read once, the output written once."""

    launches: tuple[Launch, ...]
    tokens: int
    bytes_moved: int
    floor_bytes: int


def block_of(
    image_of: Callable[[str, int, str], KernelImage],
    segment_dim: int,
    height: int,
    width: int,
    batch: int,
    multiprocessors: int,
    dtype: str = "fp16",
) -> Block:
    """One block's launches.

    Args:
        image_of: the image of a kernel for a width and a tiling.
        segment_dim, height, width, batch: S, H, W, B.
        multiprocessors: of the device.
        dtype: of compile.TYPES.
    """
    chosen = choose_tiling(batch, height, width, segment_dim, multiprocessors, dtype)
    images = [image_of(kernel, segment_dim, chosen.name) for kernel in LAUNCHES]
    geometry = plan(batch, height, width, segment_dim, chosen, multiprocessors)
    element_bytes = 4 if images[0].dtype == "fp32" else 2
    floor = 4 * 5 * segment_dim * batch * geometry.tokens * element_bytes
    launches = tuple(_launch(image, geometry, height, width) for image in images)
    return Block(launches, geometry.tokens, _bytes_moved(geometry, element_bytes), floor)


def reference_launch(image: KernelImage) -> Launch:
    """A launch of one tile a program, whose trip counts weigh the loops of a kernel."""
    size = REFERENCE_SIZE
    [tiling] = [tiling for tiling in tilings_of(image.segment_dim, image.dtype) if tiling.name == image.tiling]
    return _launch(image, plan(1, size, size, image.segment_dim, tiling, 1 << 10), size, size)


def _launch(image: KernelImage, geometry: Geometry, height: int, width: int) -> Launch:
    grid = geometry.aggregate_grid if image.kernel == "aggregate" else geometry.attend_grid
    integers = {"height": height, "width": width, "tiles_per_split": geometry.tiles_per_split, "splits": geometry.splits}
    programs = geometry.aggregate_programs if image.kernel == "aggregate" else grid[0] * grid[1] * grid[2]
    return Launch(image, grid, integers, programs)


def _bytes_moved(geometry: Geometry, element_bytes: int) -> int:
    """Every tensor once for each launch that touches it: qkv, v', q' (in the output) and the partial sums written and read, the output,
    the weights in both."""
    activations = (15 + 4 + 4 + 4 + 4 + 5) * geometry.segment_dim * geometry.batch * geometry.tokens * element_bytes
    partials = 2 * 4 * geometry.batch * geometry.splits * 4 * geometry.partial_floats
    vectors, matrices = geometry.vectors_shape, geometry.matrices_shape
    weights = 2 * (4 * vectors[0] * vectors[1] + element_bytes * matrices[0] * matrices[1] * matrices[2])
    return activations + partials + weights
