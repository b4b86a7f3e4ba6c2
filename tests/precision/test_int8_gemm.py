"""INT8 Linears as Gemm: the same model, the bias inside ONNX Runtime's integer kernel, any batch, and no change where it cannot be."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
from int8_helpers import PREPROCESS, portable_session

from gmf_edge.precision.activations import observe
from gmf_edge.precision.calibrate import ranges_from
from gmf_edge.precision.calibration_images import draw
from gmf_edge.precision.int8 import insert_qdq
from gmf_edge.precision.integer_gemm import linears_as_gemm
from gmf_edge.precision.ranges import Provenance
from gmf_edge.precision.recipe import Recipe
from gmf_edge.rewrite.channel_last import channel_last_form

LINEARS = 4 * 5
RECIPE = Recipe(proj=True)


@pytest.fixture(scope="module")
def inputs(digits):
    return np.concatenate([batch.inputs for batch in draw(digits, 32, 2).batches(PREPROCESS, 16)])


@pytest.fixture(scope="module")
def ranges(fused_path, inputs):
    statistics = observe(onnx_ir.load(fused_path), lambda: [inputs], images=len(inputs))
    return ranges_from(statistics, RECIPE, Provenance("", None, "", {}, "mse", 0.0, 0.0, len(inputs), 0))


@pytest.fixture
def lowered(fused, ranges):
    return insert_qdq(fused, ranges, RECIPE)


def run(graph, inputs, folder, optimized=None):
    return portable_session(graph, folder, optimized).run(None, {"images": inputs})[0]


def test_every_linear_becomes_an_integer_kernel_with_its_bias_inside(lowered, inputs, tmp_path):
    gemms, changed = linears_as_gemm(lowered)
    assert changed == LINEARS
    run(gemms, inputs[:1], tmp_path, tmp_path / "optimized.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QGemm") == LINEARS
    assert "MatMulIntegerToFloat" not in kinds
    assert "DequantizeLinear" not in kinds
    # two residual additions and one of attention and position a block
    assert kinds.count("Add") == 3 * 5


def test_the_form_for_the_cpu_keeps_the_integer_kernels_and_quantises_each_tensor_once(lowered, inputs, tmp_path):
    gemms, _ = linears_as_gemm(lowered)
    form = channel_last_form(gemms)
    onnx_ir.save(form, tmp_path / "form.onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = ort.InferenceSession(str(tmp_path / "form.onnx"), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    # qkv is five Gemms over one tensor in each of five blocks
    assert (kinds.count("QGemm"), kinds.count("QuantizeLinear")) == (LINEARS + 4 * 5, LINEARS)
    assert "DequantizeLinear" not in kinds
    whole = run(gemms, inputs[:8], tmp_path)
    error = np.linalg.norm(session.run(None, {"images": inputs[:8]})[0] - whole) / np.linalg.norm(whole)
    # a hair turns codes that lie between two: see the test of batch sizes
    assert error <= 0.01


def test_portable_graph_is_valid_onnx(lowered, inputs, tmp_path):
    run(linears_as_gemm(lowered)[0], inputs[:1], tmp_path)
    onnx.checker.check_model(str(tmp_path / "portable.onnx"), full_check=True)


def test_it_is_as_near_to_fp32_at_every_batch_size(fused, lowered, inputs, tmp_path):
    """Not code by code: a bias rounded by a hair turns codes that lie between two, as any other order of summation does."""
    exact = run(fused, inputs, tmp_path)
    sessions = {"matmul": portable_session(lowered, tmp_path), "gemm": portable_session(linears_as_gemm(lowered)[0], tmp_path)}
    for batch in (1, 3, 8):
        errors = {}
        for name, session in sessions.items():
            parts = [session.run(None, {"images": inputs[start : start + batch]})[0] for start in range(0, len(inputs), batch)]
            assert np.concatenate(parts).shape == exact.shape
            errors[name] = float(np.linalg.norm(np.concatenate(parts) - exact) / np.linalg.norm(exact))
        assert errors["gemm"] <= 1.2 * errors["matmul"], batch
        assert errors["gemm"] <= 0.02, batch


def test_biases_are_rounded_to_half_a_product(lowered):
    gemms, _ = linears_as_gemm(lowered)
    exact = {
        f"{node.name.removesuffix('/Add')}/MatMul": node.inputs[1].const_value.numpy()
        for node in lowered.graph
        if node.op_type == "Add" and node.inputs[1].const_value is not None
    }
    checked = 0
    for node in gemms.graph:
        if node.op_type == "Gemm" and node.name.endswith("/MatMul/Gemm"):
            codes, scale, zero = (value.const_value.numpy() for value in node.inputs[2].producer().inputs)
            assert (codes.dtype, zero.dtype) == (np.int32, np.int32)
            assert not zero.any()
            error = np.abs(codes * scale.astype(np.float64) - exact[node.name.removesuffix("/Gemm")])
            assert (error <= (0.5 + 1e-6 * np.abs(codes)) * scale).all()
            checked += 1
    assert checked == LINEARS


def test_exceptions_stay_matmuls(fused, ranges, inputs, tmp_path):
    name = "groupmixformer_backbone.1.gma_stage.0.mlp.fc1/MatMul"
    gemms, changed = linears_as_gemm(insert_qdq(fused, ranges, RECIPE, exceptions=frozenset({name})))
    assert changed == LINEARS - 1
    assert [node.name for node in gemms.graph if node.op_type == "MatMul"] == [name]
    assert np.isfinite(run(gemms, inputs[:2], tmp_path)).all()


def test_float_graph_is_returned_as_it_is(fused):
    same, changed = linears_as_gemm(fused)
    assert changed == 0
    assert [node.op_type for node in same.graph] == [node.op_type for node in fused.graph]


def test_bias_beyond_int32_stays_outside(fused, ranges):
    tiny = {name: dataclasses.replace(found, threshold=1e-9) for name, found in ranges.tensors.items()}
    lowered = insert_qdq(fused, dataclasses.replace(ranges, tensors=tiny), RECIPE)
    gemms, changed = linears_as_gemm(lowered)
    assert changed < LINEARS
    assert sum(node.op_type == "MatMul" for node in gemms.graph) == LINEARS - changed


def test_the_graph_given_is_left_as_it_is_and_the_result_is_deterministic(lowered):
    before = onnx_ir.to_proto(lowered).SerializeToString()
    first, second = (onnx_ir.to_proto(linears_as_gemm(lowered)[0]).SerializeToString() for _ in range(2))
    assert first == second
    assert onnx_ir.to_proto(lowered).SerializeToString() == before
