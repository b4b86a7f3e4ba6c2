"""The ONNX body of GmfGroupMixAttention against its float64 reference, and the reference against first principles."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, inliner

from gmf_edge.errors import SpecError
from gmf_edge.ops import group_mix_attention as op
from gmf_edge.ops.aggregation import depthwise, layer_norm
from gmf_edge.ops.mixed_attention import attend

TYPES = {np.dtype("float32"): TensorProto.FLOAT, np.dtype("float16"): TensorProto.FLOAT16}


def one_node_model(channels: int, height: int, width: int, opset: int, dtype: np.dtype) -> onnx.ModelProto:
    """A model of one GmfGroupMixAttention node with its body."""
    tokens, kind = height * width, TYPES[np.dtype(dtype)]
    node = helper.make_node(
        op.OP_TYPE, list(op.INPUT_NAMES), ["output"], domain=op.DOMAIN, **op.node_attributes(height, width, channels)
    )
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in op.input_shapes(channels, "B", tokens).items()],
        [helper.make_tensor_value_info("output", kind, ["B", tokens, channels])],
    )
    return helper.make_model(
        graph,
        functions=[op.function_body(opset)],
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(op.DOMAIN, op.DOMAIN_VERSION)],
        ir_version=8 if opset < 18 else 9,
    )


def run(model: onnx.ModelProto, inputs: dict[str, NDArray]) -> NDArray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0])


def exact_output(inputs: dict[str, NDArray], height: int, width: int, channels: int) -> NDArray[np.float64]:
    attributes = op.node_attributes(height, width, channels)
    return op.reference(inputs, height, width, float(attributes["scale"]), float(attributes["epsilon"]))


@pytest.mark.parametrize("opset", op.OPSETS)
@pytest.mark.parametrize(("channels", "height", "width"), [(40, 7, 7), (40, 9, 5), (80, 5, 13), (200, 3, 4), (240, 1, 6)])
def test_body_equals_the_float64_reference_at_every_batch_size(opset: int, channels: int, height: int, width: int) -> None:
    model = one_node_model(channels, height, width, opset, np.float32)
    onnx.checker.check_model(model, full_check=True)
    for batch in (1, 2, 3):
        inputs = op.random_inputs(np.random.default_rng(batch), channels, batch, height * width)
        exact = exact_output(inputs, height, width, channels)
        got = run(model, inputs)
        assert got.shape == exact.shape
        # written so that NaN fails
        assert np.abs(got - exact).max() <= 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("opset", op.OPSETS)
def test_inlined_body_is_standard_operators_and_equals_the_function(opset: int) -> None:
    model = one_node_model(80, 6, 5, opset, np.float32)
    inlined = inliner.inline_local_functions(model)
    onnx.checker.check_model(inlined, full_check=True)
    assert {node.domain for node in inlined.graph.node} == {""}
    kinds = [node.op_type for node in inlined.graph.node]
    assert kinds.count("LayerNormalization") == 1
    assert kinds.count("HardSwish") == 5
    assert kinds.count("Softmax") == 1
    inputs = op.random_inputs(np.random.default_rng(0), 80, 2, 30)
    np.testing.assert_array_equal(run(inlined, inputs), run(model, inputs))


def test_half_precision_body_stays_near_the_reference_and_finite_at_large_values() -> None:
    channels, height, width = 80, 20, 20
    model = one_node_model(channels, height, width, 20, np.float16)
    for gain in (1.0, 30.0):
        inputs = op.random_inputs(np.random.default_rng(0), channels, 1, height * width)
        inputs["bias_3"] *= gain
        half = {name: value.astype(np.float16) for name, value in inputs.items()}
        exact = exact_output(half, height, width, channels)
        got = run(model, half)
        assert got.dtype == np.float16
        assert np.abs(got - exact).max() <= 1e-2 * np.abs(exact).max()


def test_softmax_runs_over_tokens_and_each_head_stands_alone() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 12, 16)) for _ in range(3))
    out = attend(q, k, v, scale=0.5)
    # shifting a k channel by a constant leaves a softmax over tokens as it was, and would change one over channels
    shifted = k.copy()
    shifted[..., 3] += 2.0
    np.testing.assert_allclose(attend(q, shifted, v, 0.5), out, rtol=1e-12)
    # v of head 1 (channels 2, 3 at d = 2) reaches the output of head 1 only
    other = v.copy()
    other[..., 2:4] += 1.0
    changed = np.abs(attend(q, k, other, 0.5) - out).max(axis=(0, 1)) > 0
    np.testing.assert_array_equal(np.flatnonzero(changed), [2, 3])


def test_depthwise_correlates_with_zeros_outside() -> None:
    x = np.zeros((1, 5, 5, 1))
    x[0, 0, 0, 0] = 1.0
    weight = np.arange(9.0).reshape(1, 1, 3, 3)
    y = depthwise(x, weight)[0, :, :, 0]
    # the pixel at (0, 0) is the centre tap of its own output and the upper-left tap of the output at (1, 1)
    np.testing.assert_array_equal(y[:2, :2], [[4.0, 3.0], [1.0, 0.0]])
    assert y.sum() == 8.0


def test_layer_norm_uses_the_biased_variance() -> None:
    x = np.array([[1.0, 3.0]])
    np.testing.assert_allclose(layer_norm(x, np.ones(2), np.zeros(2), 0.0), [[-1.0, 1.0]])


def test_reference_does_not_round_to_single_precision() -> None:
    inputs = {name: value.astype(np.float64) for name, value in op.random_inputs(np.random.default_rng(0), 40, 1, 9).items()}
    exact = exact_output(inputs, 3, 3, 40)
    assert exact.dtype == np.float64
    inputs["qkv"] *= 1 + 1e-12
    assert 0 < np.abs(exact_output(inputs, 3, 3, 40) - exact).max() < 1e-10


def test_attributes_are_all_given_and_refuse_nonsense() -> None:
    assert tuple(op.node_attributes(7, 7, 80)) == op.ATTRIBUTE_NAMES
    assert op.node_attributes(7, 7, 320)["scale"] == pytest.approx(40**-0.5)
    with pytest.raises(SpecError, match="multiple of 10"):
        op.node_attributes(7, 7, 48)
    with pytest.raises(SpecError, match="at least 1"):
        op.node_attributes(0, 7, 40)
    with pytest.raises(SpecError, match="LayerNormalization"):
        op.function_body(16)


def test_contract_names_twenty_inputs_in_order() -> None:
    assert len(op.INPUT_NAMES) == 20
    assert tuple(op.input_shapes(40)) == op.INPUT_NAMES == tuple(op.function_body(20).input)


def test_import_needs_neither_torch_nor_onnx_nor_triton() -> None:
    code = "import sys\nfor name in ('torch', 'onnx', 'triton'): sys.modules[name] = None\nimport gmf_edge.ops.group_mix_attention"
    subprocess.run([sys.executable, "-c", code], check=True)
