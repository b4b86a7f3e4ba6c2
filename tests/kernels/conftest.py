"""Kernels run on a GPU where there is one, else under Triton's interpreter, which has to be chosen before triton is imported."""

from __future__ import annotations

import os

import pytest

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
