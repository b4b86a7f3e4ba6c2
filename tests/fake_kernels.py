"""Kernels that no GPU runs, for tests of what carries them."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

from gmf_edge.kernels.compile import HIDDEN_ARGUMENTS, KERNELS, KernelImage, KernelTable
from gmf_edge.kernels.layout import TILINGS

USES = (("pack_weights", ""), *((kernel, tiling) for kernel in KERNELS[1:] for tiling in TILINGS))
# kSmall and kLarge of tests/plugins/host_test.cpp
TILES = {("aggregate", "small"): 16, ("attend", "small"): 32, ("aggregate", "large"): 64, ("attend", "large"): 128}


def fake_table(folder: Path, segment_dims: tuple[int, ...] = (16,)) -> KernelTable:
    """A table of kernels that only the mock driver can run."""
    images = []
    for arch in ("sm_80", "sm_86", "sm_87", "sm_90"):
        for (kernel, tiling), segment_dim in itertools.product(USES, segment_dims):
            entry = f"{kernel}_{tiling}" if tiling else kernel
            content = f"\x7fELF {entry} {arch}".encode() + bytes(range(256))
            path = folder / f"{entry}-{arch}-{segment_dim}.cubin"
            path.write_bytes(content)
            arguments = tuple(f"a{i}" for i in range({"pack_weights": 21, "aggregate": 9, "attend": 8}[kernel]))
            images.append(
                KernelImage(
                    kernel=kernel,
                    arch=arch,
                    segment_dim=segment_dim,
                    tiling=tiling,
                    dtype="fp16",
                    entry=entry,
                    arguments=arguments + HIDDEN_ARGUMENTS,
                    tile_tokens=TILES.get((kernel, tiling), 0),
                    parts=2 if (kernel, tiling) == ("attend", "small") else 1,
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
