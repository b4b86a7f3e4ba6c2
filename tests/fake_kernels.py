"""Kernels that no GPU runs, for tests of what carries them."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

from gmf_edge.kernels.compile import HIDDEN_ARGUMENTS, KERNELS, KernelImage, KernelTable


def fake_table(folder: Path, segment_dims: tuple[int, ...] = (16,)) -> KernelTable:
    """A table of kernels that only the mock driver can run."""
    images = []
    for arch in ("sm_80", "sm_86", "sm_87", "sm_90"):
        for kernel, segment_dim in itertools.product(KERNELS, segment_dims):
            content = f"\x7fELF {kernel} {arch}".encode() + bytes(range(256))
            path = folder / f"{kernel}-{arch}-{segment_dim}.cubin"
            path.write_bytes(content)
            arguments = tuple(f"a{i}" for i in range({"pack_weights": 21, "aggregate": 9, "attend": 10}[kernel]))
            images.append(
                KernelImage(
                    kernel=kernel,
                    arch=arch,
                    segment_dim=segment_dim,
                    dtype="fp16",
                    entry=kernel,
                    arguments=arguments + HIDDEN_ARGUMENTS,
                    tile_tokens=64,
                    warps=4,
                    scale=(5 * segment_dim / 8) ** -0.5 if kernel == "attend" else 0.0,
                    epsilon=1e-5 if kernel == "aggregate" else 0.0,
                    registers=0,
                    spill_bytes=0,
                    stack_bytes=0,
                    shared_bytes=65536 if (kernel, arch) == ("aggregate", "sm_90") else 4608,
                    cubin=path.name,
                    ptx="",
                    sha256=hashlib.sha256(content).hexdigest(),
                )
            )
    return KernelTable(folder, tuple(images), "none", {})
