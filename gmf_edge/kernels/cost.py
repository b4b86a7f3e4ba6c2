"""What the compiled kernels cost, counted without a GPU: from their machine code, their launches and a device's public figures.

    cost_of(table, [ModelSpec.of("small")], batches=(1, 8, 64)) -> {"kernels": [...], "launches": [...], "model": {...}}

Nothing here is a time that anyone measured. Formulas, for a launch of `programs` blocks of W warps on M multiprocessors, R blocks on each:

    busy       = min(programs, M)
    waves      = programs / (M * R)
    chain      = cycles of the longest program, see cost_run.py: issue cycles of its warps on one of four schedulers, plus waits for
                 loads that hit in L2 (chain_l2) or in L1 (chain_l1)
    issue_us   = instructions of all warps / (4 * M * clock): what their issue takes alone, a lower bound
    bytes      = every tensor that the launch touches, once; floor_bytes = qkv read once and the output written once
    floor_us   = floor_bytes / peak bandwidth

A depthwise loop is an innermost loop of multiply-adds with loads, without tensor-core and special-function instructions. The compiler
unrolls windows of 3, so these are the loops over the rows of 5 x 5 and 7 x 7. Tiles of a program beyond the third are extrapolated: each
repeats the one before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gmf_edge.kernels.compile import TYPES, KernelImage, KernelTable
from gmf_edge.kernels.cost_devices import DEVICES, SCHEDULERS, Device, blocks_per_multiprocessor
from gmf_edge.kernels.cost_run import L1_CYCLES, L2_CYCLES, SHARED_CYCLES, Follower, Walk, parameter_bytes
from gmf_edge.kernels.cost_sass import GLOBAL_LOADS, INSTRUCTION_BYTES, SHARED_LOADS, TENSOR, Code, Loop, read_code
from gmf_edge.kernels.layout import Geometry, plan
from gmf_edge.spec import ModelSpec

BATCHES = (1, 8, 64)
# launches of a block whose weights are packed
LAUNCHES = ("aggregate", "attend")
# a loop with fewer multiply-adds among its instructions is not one of depthwise taps
LEAST_SHARE = 0.08
# the map whose trip counts weigh a kernel's loops: one tile of the third stage at 224
REFERENCE_SIZE = 14
# tiles of a program that are walked; the rest is extrapolated
WALKED_TILES = 3


@dataclass(frozen=True)
class Counted:
    """A program, or the longest of a launch."""

    instructions: int
    chain_l2: int
    chain_l1: int
    load_rounds: int
    assumed: int


class CompiledKernel:
    """An image with its code, ready to be walked."""

    def __init__(self, image: KernelImage, cubin: bytes) -> None:
        self.image = image
        self.code: Code = read_code(cubin, image.arch)
        self._follower = Follower(self.code)
        self._walk = lru_cache(maxsize=None)(self._walk_once)

    @property
    def issue(self) -> int:
        """Cycles that one instruction of all warps of a block takes its scheduler."""
        return -(-self.image.warps // SCHEDULERS)

    def walk(self, geometry: Geometry, height: int, width: int, job: int, tiles: int) -> Walk:
        """The first program of a job, over `tiles` tiles."""
        return self._walk(geometry.splits, height, width, job, tiles)

    def _walk_once(self, splits: int, height: int, width: int, job: int, tiles: int) -> Walk:
        integers = {"height": height, "width": width, "tiles_per_split": tiles, "splits": splits}
        grid = (splits, 8, 1)
        return self._follower.walk(parameter_bytes(self.image.arguments, integers), (0, job, 0), grid, self.issue)

    def program(self, geometry: Geometry, height: int, width: int, job: int, tiles: int) -> Counted:
        """What a program costs that walks through `tiles` tiles, which `attend` does not."""
        if tiles <= WALKED_TILES:
            return _counted(self.walk(geometry, height, width, job, tiles))
        before, last = (_counted(self.walk(geometry, height, width, job, n)) for n in (WALKED_TILES - 1, WALKED_TILES))

        def further(a: int, b: int) -> int:
            return b + (tiles - WALKED_TILES) * (b - a)

        return Counted(
            further(before.instructions, last.instructions),
            further(before.chain_l2, last.chain_l2),
            further(before.chain_l1, last.chain_l1),
            further(before.load_rounds, last.load_rounds),
            last.assumed,
        )


def _counted(walk: Walk) -> Counted:
    return Counted(walk.instructions, walk.chain_l2, walk.chain_l1, walk.load_rounds, walk.assumed)


def cost_of(
    table: KernelTable, specs: Iterable[ModelSpec], batches: Sequence[int] = BATCHES, dtype: str = "fp16"
) -> dict[str, Any]:
    """Rows of both tables, as JSON has them.

    Args:
        table: what compile_kernels made.
        specs: models whose launches are counted, on those DEVICES whose architecture the table holds.
        batches: images.
        dtype: of compile.TYPES.

    Raises:
        EnvironmentProblem: no nvdisasm for an architecture of the table.
        KernelError: an image is missing, or code that cannot be followed.
    """
    kernels = {
        (image.kernel, image.arch, image.segment_dim): CompiledKernel(image, table.read_cubin(image))
        for image in table.images
        if image.kernel in LAUNCHES and image.dtype == dtype
    }
    archs = {image.arch for image in table.images}
    launches = [
        row
        for device in DEVICES
        if device.arch in archs
        for spec in specs
        for batch in batches
        for row in _stage_rows(kernels, spec, batch, device, dtype)
    ]
    return {
        "kernels": [kernel_row(kernel) for kernel in kernels.values()],
        "launches": launches,
        "model": {
            "l1_cycles": L1_CYCLES,
            "l2_cycles": L2_CYCLES,
            "shared_cycles": SHARED_CYCLES,
            "devices": [vars(device) for device in DEVICES if device.arch in archs],
            "triton": table.triton,
            "ptxas": table.ptxas,
        },
    }


def kernel_row(kernel: CompiledKernel) -> dict[str, Any]:
    """One compiled kernel: what it takes of a multiprocessor, and its depthwise loops, the one that runs longest first."""
    image = kernel.image
    size = REFERENCE_SIZE
    jobs = _jobs(image.kernel)
    geometry = plan(1, size * size, image.segment_dim, image.tile_tokens, 1)
    walks = [kernel.walk(geometry, size, size, job, 1) for job in range(jobs)]
    weighed = [(loop, sum(walk.counts.get(loop.first, 0) for walk in walks)) for loop in depthwise_loops(kernel.code)]
    loops = [_loop_row(kernel.code, loop, runs) for loop, runs in weighed if runs]
    adds = sum(row["multiply_adds"] * row["runs"] for row in loops)

    def share(name: str) -> float | None:
        return round(sum(row[name] * row["runs"] for row in loops) / adds, 3) if adds else None

    blocks = blocks_per_multiprocessor(image.arch, image.registers, image.shared_bytes, image.warps)
    return {
        "kernel": image.kernel,
        "arch": image.arch,
        "segment_dim": image.segment_dim,
        "tile_tokens": image.tile_tokens,
        "warps": image.warps,
        "registers": image.registers,
        "spill_bytes": image.spill_bytes,
        "shared_bytes": image.shared_bytes,
        "blocks_per_multiprocessor": blocks,
        "warps_per_multiprocessor": blocks * image.warps,
        "code_bytes": len(kernel.code.instructions) * INSTRUCTION_BYTES,
        "tensor_instructions": sum(i.name in TENSOR for i in kernel.code.instructions),
        "instructions_per_fma": share("instructions"),
        "loads_per_fma": share("global_loads"),
        "shared_loads_per_fma": share("shared_loads"),
        "worst_instructions_per_fma": max((row["instructions_per_fma"] for row in loops), default=None),
        "loops": sorted(loops, key=lambda row: -row["runs"] * row["instructions"]),
        "assumed_branches": max(walk.assumed for walk in walks),
    }


def depthwise_loops(code: Code) -> list[Loop]:
    """Innermost loops that multiply and add what they load."""
    found = []
    for loop in code.innermost:
        body = code.instructions[loop.first : loop.last + 1]
        adds = sum(i.multiply_adds for i in body)
        loads = sum(i.name in GLOBAL_LOADS or i.name in SHARED_LOADS for i in body)
        # the loop that merges splits multiplies and adds as well, but it has exponentials
        others = any(i.name in TENSOR or i.name == "MUFU" for i in body)
        if adds >= LEAST_SHARE * len(body) and loads and not others:
            found.append(loop)
    return found


def _loop_row(code: Code, loop: Loop, runs: int) -> dict[str, Any]:
    body = code.instructions[loop.first : loop.last + 1]
    adds = sum(i.multiply_adds for i in body)
    return {
        "address": loop.first * INSTRUCTION_BYTES,
        "runs": runs,
        "instructions": len(body),
        "multiply_adds": adds,
        "global_loads": sum(i.name in GLOBAL_LOADS for i in body),
        "shared_loads": sum(i.name in SHARED_LOADS for i in body),
        "instructions_per_fma": round(len(body) / adds, 3),
    }


def _jobs(kernel: str) -> int:
    """Second dimension of a kernel's grid."""
    geometry = plan(1, 1, 2, 16, 1)
    return (geometry.aggregate_grid if kernel == "aggregate" else geometry.attend_grid)[1]


def _stage_rows(
    kernels: dict[tuple[str, str, int], CompiledKernel], spec: ModelSpec, batch: int, device: Device, dtype: str
) -> list[dict[str, Any]]:
    """A row a stage: one attention block of it."""
    rows = []
    stages = zip(spec.segment_dims, spec.depths, spec.stage_sizes, strict=True)
    for stage, (width_dim, depth, (height, width)) in enumerate(stages, 1):
        pair = [kernels[name, device.arch, width_dim] for name in LAUNCHES]
        geometry = plan(batch, height * width, width_dim, pair[0].image.tile_tokens, device.multiprocessors)
        launches = [_launch(kernel, geometry, height, width, device) for kernel in pair]
        element = 4 if dtype == TYPES[2] else 2
        moved, floor = bytes_moved(geometry, element), 4 * 5 * width_dim * geometry.tokens * batch * element
        instructions = sum(launch["thread_instructions"] for launch in launches)
        rows.append(
            {
                "variant": spec.variant,
                "device": device.name,
                "arch": device.arch,
                "batch": batch,
                "stage": stage,
                "blocks": depth,
                "segment_dim": width_dim,
                "height": height,
                "width": width,
                "launches": launches,
                "chain_l2": sum(launch["chain_l2"] for launch in launches),
                "chain_l1": sum(launch["chain_l1"] for launch in launches),
                "chain_instructions": sum(launch["longest_instructions"] for launch in launches),
                "instructions_per_token": round(instructions / (batch * geometry.tokens)),
                "issue_us": round(sum(launch["issue_us"] for launch in launches), 3),
                "bytes": moved,
                "floor_bytes": floor,
                "floor_us": round(floor / device.bandwidth_gbs * 1e-3, 3),
                "assumed_branches": max(launch["assumed_branches"] for launch in launches),
            }
        )
    return rows


def _launch(kernel: CompiledKernel, geometry: Geometry, height: int, width: int, device: Device) -> dict[str, Any]:
    image = kernel.image
    grid = geometry.aggregate_grid if image.kernel == "aggregate" else geometry.attend_grid
    programs = grid[0] * grid[1] * grid[2]
    resident = blocks_per_multiprocessor(image.arch, image.registers, image.shared_bytes, image.warps)
    tiles = -(-geometry.tokens // geometry.tile_tokens)
    # tiles of each program along the first dimension of the grid
    shares = [1] * grid[0]
    if image.kernel == "aggregate":
        shares = [min(geometry.tiles_per_split, tiles - first) for first in range(0, tiles, geometry.tiles_per_split)]
    longest: Counted | None = None
    longest_job, instructions, assumed = 0, 0, 0
    for job in range(grid[1]):
        for share in set(shares):
            counted = kernel.program(geometry, height, width, job, share)
            instructions += counted.instructions * shares.count(share) * grid[2]
            assumed = max(assumed, counted.assumed)
            if longest is None or counted.chain_l2 > longest.chain_l2:
                longest, longest_job = counted, job
    assert longest is not None, "a grid has programs"
    warp_instructions = instructions * image.warps
    return {
        "kernel": image.kernel,
        "grid": list(grid),
        "tile_tokens": image.tile_tokens,
        "warps": image.warps,
        "programs": programs,
        "busy_multiprocessors": min(programs, device.multiprocessors),
        "blocks_per_multiprocessor": resident,
        "waves": round(programs / (device.multiprocessors * resident), 3) if resident else None,
        "longest_job": longest_job,
        "longest_instructions": longest.instructions,
        "load_rounds": longest.load_rounds,
        "chain_l2": longest.chain_l2,
        "chain_l1": longest.chain_l1,
        "thread_instructions": warp_instructions * 32,
        "issue_us": round(warp_instructions / (SCHEDULERS * device.multiprocessors * device.clock_ghz) * 1e-3, 3),
        "assumed_branches": assumed,
    }


def bytes_moved(geometry: Geometry, element_bytes: int) -> int:
    """Of both launches: qkv once (aggregate reads k, v and segment 4, attend q), v' and the partial sums written and read, the output,
    the weights in each launch."""
    dim, tokens = geometry.segment_dim, geometry.batch * geometry.tokens
    activations = (15 + 4 + 4 + 5) * dim * tokens * element_bytes
    partials = 2 * 4 * geometry.batch * geometry.splits * 4 * geometry.partial_floats
    vectors, matrices = geometry.vectors_shape, geometry.matrices_shape
    weights = 2 * (4 * vectors[0] * vectors[1] + element_bytes * matrices[0] * matrices[1] * matrices[2])
    return activations + partials + weights


def total_rows(launches: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a variant, device and batch: all blocks of the model one after the other."""
    totals: dict[tuple[str, str, int], dict[str, Any]] = {}
    for row in launches:
        key = (row["variant"], row["device"], row["batch"])
        total = totals.setdefault(
            key,
            dict(zip(("variant", "device", "batch"), key, strict=True))
            | dict.fromkeys(("chain_l2", "chain_l1", "issue_us", "bytes", "floor_bytes", "floor_us", "thread_instructions"), 0)
            | {"least_busy": row["launches"][0]["busy_multiprocessors"]},
        )
        for name in ("chain_l2", "chain_l1", "issue_us", "bytes", "floor_bytes", "floor_us"):
            total[name] += row["blocks"] * row[name]
        total["thread_instructions"] += row["blocks"] * sum(launch["thread_instructions"] for launch in row["launches"])
        total["least_busy"] = min(total["least_busy"], *(launch["busy_multiprocessors"] for launch in row["launches"]))
    return list(totals.values())
