"""Lowering: which graphs a precision gives to which runtime, and what is noted of it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx_ir
import pytest
from graph_tools import kinds, noise

from gmf_edge.precision.lower import lower_precision
from gmf_edge.rewrite.bodies import inline_bodies
from gmf_edge.spec import Precision

IMAGES = noise(2, 3, 96, 64)


def test_fp32_gives_every_runtime_the_same_graph(odd_pico: Any) -> None:
    lowered = lower_precision(onnx_ir.load(odd_pico.fused), Precision.FP32, "float32", inline_bodies, [IMAGES])
    assert lowered.strong is lowered.weak is lowered.cpu
    assert kinds(lowered.strong)["Cast"] == 0


def test_fp16_has_casts_round_layer_normalization_only_where_types_decide(odd_pico: Any) -> None:
    lowered = lower_precision(onnx_ir.load(odd_pico.fused), Precision.FP16, "float32", inline_bodies, [IMAGES])
    assert lowered.strong is lowered.cpu
    norms = kinds(lowered.strong)["LayerNormalization"]
    assert norms > 0
    # in and before the head; round each norm one in and one out
    assert kinds(lowered.weak)["Cast"] == 2
    assert 2 < kinds(lowered.strong)["Cast"] <= 2 + 2 * norms


def test_what_fp16_notes_is_plain_and_complete(odd_pico: Any) -> None:
    lowered = lower_precision(onnx_ir.load(odd_pico.fused), Precision.FP16, "float32", inline_bodies, [IMAGES, IMAGES[:1]])
    facts = json.loads(json.dumps(dict(lowered.facts), allow_nan=False))
    assert set(facts) == {"ranges", "advice", "islands", "fp32_statistics", "fp32_sums", "overflowing_weights", "flushed_weights"}
    assert facts["ranges"]["images"] == 3
    assert 0 < facts["ranges"]["largest"] < 65504
    assert set(facts["ranges"]["beyond"]) == set(facts["overflowing_weights"]) == set()


def test_the_range_check_sees_the_fp32_graph(odd_pico: Any) -> None:
    fused = onnx_ir.load(odd_pico.fused)
    seen: list[onnx_ir.Model] = []

    def inline(graph: onnx_ir.Model) -> onnx_ir.Model:
        seen.append(graph.clone())
        return inline_bodies(graph)

    lower_precision(fused, Precision.FP16, "float32", inline, [IMAGES])
    assert len(seen) == 1
    assert {value.dtype for value in seen[0].graph.inputs} == {onnx_ir.DataType.FLOAT}
    weights = {value.const_value.dtype for value in seen[0].graph.initializers.values() if value.const_value is not None}
    assert onnx_ir.DataType.FLOAT16 not in weights


def test_int8_needs_its_quantization(odd_pico: Any) -> None:
    with pytest.raises(AssertionError, match="quantization"):
        lower_precision(onnx_ir.load(odd_pico.fused), Precision.INT8, "float32", inline_bodies, [IMAGES])


def test_the_bundle_notes_what_the_lowering_found(odd_pico: Any) -> None:
    lowering = json.loads((odd_pico.bundle / "manifest.json").read_text())["lowering"]
    assert lowering["ranges"]["images"] == 16
    assert np.isfinite(lowering["ranges"]["largest"])
    assert "head/Gemm" in lowering["islands"]
