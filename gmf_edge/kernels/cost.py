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

A depthwise loop is an innermost loop of multiply-adds with loads, without tensor-core and special-function instructions: one row of a
window a turn. Windows of 3 are among them where the compiler keeps their loop. Of a grid's first dimension the first two and the last
two programs are walked; those between repeat the first two in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gmf_edge.kernels.compile import KernelImage, KernelTable
from gmf_edge.kernels.cost_devices import DEVICES, SCHEDULERS, Device, blocks_per_multiprocessor
from gmf_edge.kernels.cost_launches import LAUNCHES, Launch, block_of, reference_launch
from gmf_edge.kernels.cost_run import L1_CYCLES, L2_CYCLES, SHARED_CYCLES, Follower, Walk, parameter_bytes
from gmf_edge.kernels.cost_sass import GLOBAL_LOADS, INSTRUCTION_BYTES, SHARED_LOADS, TENSOR, Code, Loop, read_code
from gmf_edge.spec import ModelSpec

BATCHES = (1, 8, 64)
# a loop with fewer multiply-adds among its instructions is not one of depthwise taps
LEAST_SHARE = 0.08


class CompiledKernel:
    """An image with its code, ready to be walked; a walk is made once."""

    def __init__(self, image: KernelImage, cubin: bytes) -> None:
        self.image = image
        self.code: Code = read_code(cubin, image.arch)
        self._follower = Follower(self.code)
        self._walks: dict[tuple[bytes, int, int, tuple[int, int, int]], Walk] = {}

    def walk(self, launch: Launch, x: int, job: int) -> Walk:
        """Program (x, job) of the first image of a launch.

        Raises:
            KernelError: code that cannot be followed.
        """
        parameters = parameter_bytes(self.image.arguments, launch.integers)
        # images of a batch do the same
        grid = (launch.grid[0], launch.grid[1], 1)
        key = (parameters, x, job, grid)
        if key not in self._walks:
            issue = -(-self.image.warps // SCHEDULERS)
            self._walks[key] = self._follower.walk(parameters, (x, job, 0), grid, issue)
        return self._walks[key]


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
        image.cubin: CompiledKernel(image, table.read_cubin(image))
        for image in table.images
        if image.kernel in LAUNCHES and image.dtype == dtype
    }
    archs = {image.arch for image in table.images}
    devices = [device for device in DEVICES if device.arch in archs]
    launches = [
        row
        for device in devices
        for spec in specs
        for batch in batches
        for row in _stage_rows(table, kernels, spec, batch, device, dtype)
    ]
    return {
        "kernels": [kernel_row(kernel) for kernel in kernels.values()],
        "launches": launches,
        "model": {
            "l1_cycles": L1_CYCLES,
            "l2_cycles": L2_CYCLES,
            "shared_cycles": SHARED_CYCLES,
            "devices": [vars(device) for device in devices],
            "triton": table.triton,
            "ptxas": table.ptxas,
        },
    }


def kernel_row(kernel: CompiledKernel) -> dict[str, Any]:
    """One compiled kernel: what it takes of a multiprocessor, and its depthwise loops, the one that runs longest first."""
    image = kernel.image
    launch = reference_launch(image)
    walks = [kernel.walk(launch, 0, job) for job in range(launch.grid[1])]
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
        "tiling": image.tiling,
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


def _stage_rows(
    table: KernelTable, kernels: dict[str, CompiledKernel], spec: ModelSpec, batch: int, device: Device, dtype: str
) -> list[dict[str, Any]]:
    """A row a stage: one attention block of it."""
    rows = []
    stages = zip(spec.segment_dims, spec.depths, spec.stage_sizes, strict=True)
    for stage, (segment_dim, depth, (height, width)) in enumerate(stages, 1):

        def image_of(kernel: str, segment_dim: int, tiling: str) -> KernelImage:
            return table.image_of(kernel, device.arch, segment_dim, dtype, tiling)

        block = block_of(image_of, segment_dim, height, width, batch, device.multiprocessors, dtype)
        launches = [_launch_row(kernels[launch.image.cubin], launch, device) for launch in block.launches]
        instructions = sum(launch["thread_instructions"] for launch in launches)
        rows.append(
            {
                "variant": spec.variant,
                "device": device.name,
                "arch": device.arch,
                "batch": batch,
                "stage": stage,
                "blocks": depth,
                "segment_dim": segment_dim,
                "height": height,
                "width": width,
                "tiling": launches[0]["tiling"],
                "launches": launches,
                "chain_l2": sum(launch["chain_l2"] for launch in launches),
                "chain_l1": sum(launch["chain_l1"] for launch in launches),
                "chain_instructions": sum(launch["longest_instructions"] for launch in launches),
                "instructions_per_token": round(instructions / (batch * block.tokens)),
                "issue_us": round(sum(launch["issue_us"] for launch in launches), 3),
                "bytes": block.bytes_moved,
                "floor_bytes": block.floor_bytes,
                "floor_us": round(block.floor_bytes / device.bandwidth_gbs * 1e-3, 3),
                "assumed_branches": max(launch["assumed_branches"] for launch in launches),
            }
        )
    return rows


def _launch_row(kernel: CompiledKernel, launch: Launch, device: Device) -> dict[str, Any]:
    image, grid = launch.image, launch.grid
    resident = blocks_per_multiprocessor(image.arch, image.registers, image.shared_bytes, image.warps)
    programs = [(kernel.walk(launch, x, job), times, job) for x, times in _walked(grid[0]) for job in range(grid[1])]
    longest, _, longest_job = max(programs, key=lambda program: program[0].chain_l2)
    warp_instructions = sum(walk.instructions * times for walk, times, _ in programs) * grid[2] * image.warps
    return {
        "kernel": image.kernel,
        "tiling": image.tiling,
        "grid": list(grid),
        "tile_tokens": image.tile_tokens,
        "warps": image.warps,
        "programs": launch.programs,
        "busy_multiprocessors": min(launch.programs, device.multiprocessors),
        "blocks_per_multiprocessor": resident,
        "waves": round(launch.programs / (device.multiprocessors * resident), 3) if resident else None,
        "longest_job": longest_job,
        "longest_instructions": longest.instructions,
        "load_rounds": longest.load_rounds,
        "chain_l2": longest.chain_l2,
        "chain_l1": longest.chain_l1,
        "thread_instructions": warp_instructions * 32,
        "issue_us": round(warp_instructions / (SCHEDULERS * device.multiprocessors * device.clock_ghz) * 1e-3, 3),
        "assumed_branches": max(walk.assumed for walk, _, _ in programs),
    }


def _walked(count: int) -> list[tuple[int, int]]:
    """Of `count` programs in a row those that are walked, and for how many each stands: the first two for all but the last two."""
    between = count - 2
    if between < 2:
        return [(x, 1) for x in range(count)]
    return [(0, -(-between // 2)), (1, between // 2), (count - 2, 1), (count - 1, 1)]


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
