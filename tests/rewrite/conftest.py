"""The untrained model's graphs, loaded anew for each test."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("onnxscript")

import onnx_ir


@pytest.fixture
def plain(odd_pico: Any) -> onnx_ir.Model:
    """1-plain.onnx."""
    return onnx_ir.load(odd_pico.plain)


@pytest.fixture
def fused(odd_pico: Any) -> onnx_ir.Model:
    """2-fused.onnx."""
    return onnx_ir.load(odd_pico.fused)
