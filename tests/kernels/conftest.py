"""Kernels run on a GPU where there is one, else under Triton's interpreter, which has to be chosen before triton is imported."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
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
def orin_table(made_once: Callable[[str, Callable[[Path], object]], Path]) -> KernelTable:
    """S = 16 for sm_87, compiled once a run."""
    from gmf_edge.kernels.compile import compile_widths, read_table

    return read_table(made_once("kernels-s16", lambda folder: compile_widths((16,), ("sm_87",), folder)))
