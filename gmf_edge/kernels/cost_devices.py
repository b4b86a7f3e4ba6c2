"""What an architecture lets a multiprocessor hold, and the GPUs that a cost table is made for. Public figures, nothing measured.

Sources: CUDA C++ Programming Guide, technical specifications by compute capability (limits of a multiprocessor); NVIDIA's data sheets of
H200, A100 80GB SXM, A10, L4, Jetson AGX Orin 64GB and Jetson T5000 (multiprocessors, boost clock, peak bandwidth of the memory, L2).
"""

from __future__ import annotations

from dataclasses import dataclass

from gmf_edge.errors import KernelError

REGISTERS = 65536
# a warp's registers come in units of 256; each of the four schedulers has a quarter of the file
REGISTER_UNIT = 256
SCHEDULERS = 4
# CUDA keeps 1 KB of every block's shared memory; it comes in units of 128 bytes
RESERVED_SHARED_BYTES, SHARED_UNIT = 1024, 128


@dataclass(frozen=True)
class Limits:
    """Of one multiprocessor: resident warps, resident blocks, shared memory in bytes for all of them."""

    warps: int
    blocks: int
    shared_bytes: int


LIMITS = {
    "sm_80": Limits(64, 32, 164 * 1024),
    "sm_86": Limits(48, 16, 100 * 1024),
    "sm_87": Limits(48, 16, 164 * 1024),
    "sm_89": Limits(48, 24, 100 * 1024),
    "sm_90": Limits(64, 32, 228 * 1024),
    "sm_100": Limits(64, 32, 228 * 1024),
    "sm_110": Limits(48, 24, 228 * 1024),
    "sm_120": Limits(48, 24, 100 * 1024),
}


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        name, arch: as compile.ARCHITECTURES has it.
        multiprocessors: of it.
        clock_ghz: boost clock.
        bandwidth_gbs: peak of its memory, 1e9 bytes a second.
        l2_mib: L2 cache.
    """

    name: str
    arch: str
    multiprocessors: int
    clock_ghz: float
    bandwidth_gbs: float
    l2_mib: int


DEVICES = (
    Device("H200", "sm_90", 132, 1.98, 4800.0, 50),
    Device("A100", "sm_80", 108, 1.41, 2039.0, 40),
    Device("A10", "sm_86", 72, 1.695, 600.0, 6),
    Device("L4", "sm_89", 58, 2.04, 300.0, 48),
    Device("Orin", "sm_87", 16, 1.3, 204.8, 4),
    Device("Thor", "sm_110", 20, 1.575, 273.0, 32),
)


def blocks_per_multiprocessor(arch: str, registers: int, shared_bytes: int, warps: int) -> int:
    """How many blocks of a kernel one multiprocessor holds at once: the least of four limits. 0: not even one.

    Args:
        arch: of LIMITS.
        registers: of a thread.
        shared_bytes: of a block.
        warps: of a block.

    Raises:
        KernelError: an architecture whose limits are not known.
    """
    if arch not in LIMITS:
        raise KernelError(f"the limits of {arch} are not known", f"use {', '.join(LIMITS)}")
    limits = LIMITS[arch]
    warp_registers = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = REGISTERS // SCHEDULERS // warp_registers * SCHEDULERS // warps
    shared = -(-(shared_bytes + RESERVED_SHARED_BYTES) // SHARED_UNIT) * SHARED_UNIT
    return min(by_registers, limits.shared_bytes // shared, limits.warps // warps, limits.blocks)
