"""BF16 in the graph: FP32's range, one rounding a tensor, a valid ONNX file; and the word on when it is the better choice."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from graph_tools import kinds, noise, relative_error, run, session_of
from onnx_ir import DataType
from strong_typing import StronglyTyped

from gmf_edge.errors import SpecError
from gmf_edge.precision.bf16 import BF16_KERNELS, to_bf16, with_fp32_kernels
from gmf_edge.precision.fp16 import to_fp16
from gmf_edge.precision.fp16_range import RangeReport, advice_of
from gmf_edge.precision.int8_layers import constant_array, replace_constant
from gmf_edge.precision.lower import lower_precision
from gmf_edge.rewrite.bodies import drop_bodies, inline_bodies
from gmf_edge.rewrite.opset import for_target
from gmf_edge.spec import TARGETS, Precision

IMAGES = noise(4, 3, 96, 64, seed=21)


@pytest.fixture
def fused(odd_pico: Any) -> onnx_ir.Model:
    """The untrained model, fused: 96 x 64 pixels. It shadows the packaged one of the INT8 tests."""
    return onnx_ir.load(odd_pico.fused)


@pytest.fixture(scope="module")
def exact(odd_pico: Any) -> Any:
    return run(onnx_ir.load(odd_pico.fused), IMAGES)


def lowered(fused: onnx_ir.Model, io_dtype: str = "float32") -> tuple[onnx_ir.Model, Any]:
    result = lower_precision(fused, Precision.BF16, io_dtype, inline_bodies, [IMAGES])
    return inline_bodies(result.strong), json.loads(json.dumps(dict(result.facts), allow_nan=False))


def test_bf16_is_as_near_to_fp32_as_twice_pytorchs_bfloat16(odd_spec: Any, fused: onnx_ir.Model, exact: Any) -> None:
    import torch

    from gmf_edge.model.groupmixformer import random_model
    from gmf_edge.spec import ModelSpec

    model = random_model(ModelSpec.of("pico", odd_spec.num_classes, odd_spec.image_size), seed=odd_spec.seed)
    with torch.inference_mode():
        torchs = relative_error(model.bfloat16()(torch.from_numpy(IMAGES).bfloat16()).float().numpy(), exact)
    graph, _ = lowered(fused)
    ours = relative_error(run(with_fp32_kernels(graph), IMAGES), exact)
    assert 0 < ours <= 2 * torchs, f"{ours:.2e} against PyTorch's {torchs:.2e}"


def test_a_cpu_rounds_what_a_strongly_typed_runtime_rounds(fused: onnx_ir.Model, exact: Any) -> None:
    graph, _ = lowered(fused)
    typed = StronglyTyped(graph).infer(IMAGES)
    cpu = with_fp32_kernels(graph)
    assert kinds(cpu)["Cast"] > kinds(graph)["Cast"]
    # neither is exact: one rounding more or less in a sum turns a last bit, whose size is BF16's
    error = relative_error(typed, exact)
    for optimise in (False, True):
        found = run(cpu, IMAGES, optimise)
        assert relative_error(found, exact) >= error / 3, "ONNX Runtime optimised the rounding away"
        assert relative_error(found, typed) <= 2 * error


def test_no_arithmetic_reads_or_writes_bf16_on_a_cpu(fused: onnx_ir.Model) -> None:
    cpu = with_fp32_kernels(lowered(fused)[0])
    for node in cpu.graph:
        types = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None}
        assert node.op_type in BF16_KERNELS or DataType.BFLOAT16 not in types, node.name
    weights = {value.dtype for value in cpu.graph.initializers.values()}
    assert DataType.BFLOAT16 in weights, "stored as BF16"
    assert session_of(cpu).get_outputs()[0].type == "tensor(float)"


def test_a_graph_without_bf16_has_fp32_kernels_already(fused: onnx_ir.Model) -> None:
    to_fp16(fused)
    portable = inline_bodies(fused)
    assert kinds(with_fp32_kernels(portable)) == kinds(portable)


def test_heavy_layers_are_bf16_and_statistics_softmax_and_head_fp32(fused: onnx_ir.Model) -> None:
    graph, facts = lowered(fused)
    assert set(facts["islands"]) == {"head/GlobalAveragePool", "head/Flatten", "head/Gemm"}
    for node in graph.graph:
        types = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None}
        if node.op_type in ("Conv", "Gelu", "HardSwish"):
            assert types == {DataType.BFLOAT16}, node.name
        elif node.op_type in ("Softmax", "LayerNormalization", "Gemm"):
            assert types == {DataType.FLOAT}, node.name
    assert DataType.FLOAT16 not in {value.dtype for value in graph.graph.initializers.values()}


@pytest.mark.parametrize("io_dtype", ["float32", pytest.param("float16", marks=pytest.mark.slow)])
def test_it_passes_onnxs_full_check_at_opset_22_and_not_at_20(fused: onnx_ir.Model, io_dtype: str) -> None:
    portable, _ = lowered(fused, io_dtype)
    graph = onnx_ir.to_proto(for_target(portable, TARGETS["tensorrt-10.3"], Precision.BF16))
    assert (graph.opset_import[0].version, graph.ir_version) == (22, 10)
    onnx.checker.check_model(graph, full_check=True)
    with pytest.raises(Exception, match="bfloat16"):
        onnx.checker.check_model(onnx_ir.to_proto(for_target(portable, TARGETS["tensorrt-10.3"])), full_check=True)
    cpu = onnx_ir.to_proto(for_target(with_fp32_kernels(portable), TARGETS["onnxruntime"]))
    onnx.checker.check_model(cpu, full_check=True)


def test_a_target_without_bf16_is_refused(fused: onnx_ir.Model) -> None:
    to_bf16(fused)
    with pytest.raises(SpecError, match=r"tensorrt-8\.6 does not compute in BF16"):
        for_target(drop_bodies(fused), TARGETS["tensorrt-8.6"], Precision.BF16)


def test_what_fp16_cannot_hold_is_no_island_in_bf16(fused: onnx_ir.Model) -> None:
    (stem,) = [node for node in fused.graph if node.name == "conv_stem.proj1/Conv"]
    (second,) = [node for node in fused.graph if node.name == "conv_stem.proj2/Conv"]
    for index in (1, 2):
        replace_constant(fused, stem, index, constant_array(stem.inputs[index]) * np.float32(2**20), f"larger/{index}")
    replace_constant(fused, second, 1, constant_array(second.inputs[1]) / np.float32(2**20), "smaller")
    wanted = run(fused, IMAGES)
    graph, facts = lowered(fused)
    assert facts["ranges"]["beyond"]
    assert len(facts["islands"]) == 3, "only the head"
    assert relative_error(run(with_fp32_kernels(graph), IMAGES), wanted) <= 0.1
    assert "BF16 holds them all" in facts["advice"][0]


def ranges(largest: float) -> RangeReport:
    near = {"x": largest} if 32752 < largest <= 65504 else {}
    return RangeReport(4, 100, "x", largest, near, {"x": largest} if largest > 65504 else {})


@pytest.mark.parametrize(
    ("largest", "weights", "precision", "words"),
    [
        (1e6, {}, Precision.FP16, "--precision bf16 holds them all"),
        (100.0, {"layer": 1e6}, Precision.FP16, "1 layers' weights are beyond FP16's range"),
        (4e4, {}, Precision.INT8, "other images may pass it: --precision bf16"),
        (100.0, {}, Precision.BF16, "FP16 has three more bits of mantissa, and is the better choice"),
        (4e4, {}, Precision.BF16, "BF16 is the safer choice"),
        (1e6, {}, Precision.BF16, "BF16 holds them all"),
    ],
)
def test_the_range_check_says_which_half_suits(largest: float, weights: Any, precision: Precision, words: str) -> None:
    (sentence,) = advice_of(ranges(largest), weights, precision)
    assert words in sentence
    assert f"x reaches {largest:.3g}" in sentence


def test_where_fp16_is_the_usual_choice_nothing_is_said() -> None:
    assert advice_of(ranges(100.0), {}, Precision.FP16) == []
