"""Kernels run on a GPU where there is one, else under Triton's interpreter, which has to be chosen before triton is imported."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gmf_edge.kernels.compile import KernelTable

try:
    import torch
except ImportError:
    # the tests themselves skip; a conftest cannot
    HAS_GPU = False
else:
    HAS_GPU = torch.cuda.is_available()

if not HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def device() -> str:
    """Where the kernels of these tests run."""
    return "cuda" if HAS_GPU and os.environ.get("TRITON_INTERPRET") != "1" else "cpu"


@pytest.fixture(scope="session")
def orin_table(pico_kernels: KernelTable) -> KernelTable:
    """S = 16 for sm_87."""
    return replace(pico_kernels, images=tuple(image for image in pico_kernels.images if image.segment_dim == 16))
