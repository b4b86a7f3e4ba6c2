"""FP16 in the graph: as near to FP32 as PyTorch's own half, with islands where weights or activations do not fit, each by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir
import pytest
from graph_tools import kinds, noise, relative_error, run
from numpy.typing import NDArray

from gmf_edge.errors import PrecisionError
from gmf_edge.precision.fp16 import FP16_MAX, to_fp16
from gmf_edge.precision.fp16_range import NEAR, activation_ranges, islands_for
from gmf_edge.precision.lower import lower_precision
from gmf_edge.rewrite.bodies import inline_bodies
from gmf_edge.spec import Precision

IMAGES = noise(4, 3, 96, 64, seed=21)
BLOCK = "groupmixformer_backbone.2.gma_stage.1"
HEAD = {"head/GlobalAveragePool", "head/Flatten", "head/Gemm"}


@pytest.fixture
def fused(odd_pico: Any) -> onnx_ir.Model:
    """The untrained model, fused: 96 x 64 pixels. It shadows the packaged one of the INT8 tests."""
    return onnx_ir.load(odd_pico.fused)


def node_of(graph: onnx_ir.Model, name: str) -> onnx_ir.Node:
    return next(each for each in graph.graph if each.name == name)


def change(graph: onnx_ir.Model, node: str, index: int, how: Callable[[NDArray[Any]], NDArray[Any]]) -> str:
    """Give one node a changed copy of one of its weights; the copy's name."""
    target = node_of(graph, node)
    value = target.inputs[index]
    assert value is not None
    assert value.const_value is not None
    array = how(value.const_value.numpy().copy()).astype(np.float32)
    tensor = onnx_ir.tensor(array, name=f"{node}/changed_{index}")
    made = onnx_ir.Value(name=tensor.name, type=onnx_ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.graph.register_initializer(made)
    target.replace_input_with(index, made)
    return str(made.name)


def lowered(fused: onnx_ir.Model, io_dtype: str = "float32") -> tuple[onnx_ir.Model, Any]:
    result = lower_precision(fused, Precision.FP16, io_dtype, inline_bodies, [IMAGES])
    return inline_bodies(result.strong), result.facts


def test_fp16_is_as_near_to_fp32_as_twice_pytorchs_half(odd_spec: Any, fused: onnx_ir.Model) -> None:
    import torch

    from gmf_edge.model.groupmixformer import random_model
    from gmf_edge.spec import ModelSpec

    model = random_model(ModelSpec.of("pico", odd_spec.num_classes, odd_spec.image_size), seed=odd_spec.seed)
    images = torch.from_numpy(IMAGES)
    with torch.inference_mode():
        exact = model(images).numpy()
        half = model.half()(images.half()).float().numpy()
    graph, _ = lowered(fused)
    ours, torchs = relative_error(run(graph, IMAGES), exact), relative_error(half, exact)
    assert 0 < ours <= 2 * torchs, f"{ours:.2e} against PyTorch's {torchs:.2e}"


def test_the_heavy_layers_are_fp16_and_the_head_is_fp32(fused: onnx_ir.Model) -> None:
    report = to_fp16(fused)
    assert set(report.islands) == HEAD
    assert (report.overflowing_weights, report.flushed_weights) == ({}, {})
    for each in fused.graph:
        values = [value for value in (*each.inputs, *each.outputs) if value is not None]
        if each.op_type in ("Conv", "MatMul", "Gelu", "HardSwish"):
            assert {value.dtype for value in values} == {onnx_ir.DataType.FLOAT16}, each.name
        elif each.op_type == "LayerNormalization":
            assert {value.dtype for value in values} == {onnx_ir.DataType.FLOAT}, each.name
        elif each.op_type == "GmfGroupMixAttention":
            # all but the gain and bias of the LayerNorm inside
            wide = [value for value in values if value.dtype == onnx_ir.DataType.FLOAT]
            assert len(wide) == 2, each.name
            assert {value.dtype for value in values if value not in wide} == {onnx_ir.DataType.FLOAT16}, each.name
    gemm = node_of(fused, next(str(each.name) for each in fused.graph if each.op_type == "Gemm"))
    assert {value.dtype for value in gemm.inputs if value is not None} == {onnx_ir.DataType.FLOAT}


def test_softmax_and_layer_statistics_stay_fp32_inside_the_fp16_graph(fused: onnx_ir.Model) -> None:
    graph, _ = lowered(fused)
    softmaxes = [each for each in graph.graph if each.op_type == "Softmax"]
    assert len(softmaxes) == 5
    assert all(each.inputs[0] is not None and each.inputs[0].dtype == onnx_ir.DataType.FLOAT for each in softmaxes)
    norms = [each for each in graph.graph if each.op_type == "LayerNormalization"]
    # ONNX's stash_type 1, the default, is FLOAT
    assert all("stash_type" not in each.attributes or each.attributes["stash_type"].value == 1 for each in norms)


def test_no_fp32_weight_is_left_beside_its_half(fused: onnx_ir.Model) -> None:
    to_fp16(fused)
    kept = {name for name, value in fused.graph.initializers.items() if value.dtype == onnx_ir.DataType.FLOAT}
    users = {str(use.node.name) for name in kept for use in fused.graph.initializers[name].uses()}
    statistics = {str(each.name) for each in fused.graph if each.op_type in ("LayerNormalization", "GmfGroupMixAttention")}
    assert users <= HEAD | statistics | {str(each.name) for each in fused.graph if each.op_type == "Gemm"}


def test_io_in_fp16_has_the_same_logits(fused: onnx_ir.Model) -> None:
    twin = fused.clone()
    half, _ = lowered(fused, "float16")
    full, _ = lowered(twin, "float32")
    assert (half.graph.inputs[0].name, half.graph.outputs[0].name) == ("images", "logits")
    assert half.graph.inputs[0].dtype == half.graph.outputs[0].dtype == onnx_ir.DataType.FLOAT16
    for images in (IMAGES[:1].astype(np.float16), IMAGES[:3].astype(np.float16)):
        logits = run(half, images)
        assert logits.dtype == np.float16
        assert np.array_equal(logits, run(full, images.astype(np.float32)).astype(np.float16))


def test_fp16_io_around_an_fp32_graph_changes_nothing_inside(fused: onnx_ir.Model) -> None:
    wanted = run(inline_bodies(fused), IMAGES.astype(np.float16).astype(np.float32))
    result = lower_precision(fused, Precision.FP32, "float16", inline_bodies, [])
    logits = run(inline_bodies(result.strong), IMAGES.astype(np.float16))
    assert logits.dtype == np.float16
    assert np.array_equal(logits, wanted.astype(np.float16))


def test_fp32_is_the_fused_graph_itself(fused: onnx_ir.Model) -> None:
    before = kinds(fused)
    result = lower_precision(fused, Precision.FP32, "float32", inline_bodies, [])
    assert kinds(result.strong) == before
    assert dict(result.facts) == {}


def test_a_weight_beyond_fp16_makes_its_layer_an_island_by_name(fused: onnx_ir.Model) -> None:
    # one input channel of the MLP: small in the norm before it, beyond FP16 in the weight after it
    layer = f"{BLOCK}.mlp.fc1/MatMul"

    def small(gain: NDArray[Any]) -> NDArray[Any]:
        gain[0] = 1e-4
        return gain

    def large(weight: NDArray[Any]) -> NDArray[Any]:
        weight[0, :3] = (7e4, -8e4, 1.0)
        return weight

    change(fused, f"{BLOCK}.norm2/LayerNormalization", 1, small)
    weight = change(fused, layer, 1, large)
    wanted = run(inline_bodies(fused), IMAGES)
    graph, facts = lowered(fused)
    assert facts["overflowing_weights"] == {weight: 8e4}
    assert set(facts["islands"]) - HEAD == {layer}
    assert weight in facts["islands"][layer]
    assert "8e+04" in facts["islands"][layer]
    logits = run(graph, IMAGES)
    assert np.isfinite(logits).all()
    assert relative_error(logits, wanted) <= 5e-3


def test_a_weight_of_exactly_the_largest_half_is_no_island(fused: onnx_ir.Model) -> None:
    change(fused, f"{BLOCK}.mlp.fc1/MatMul", 1, lambda weight: np.full_like(weight, FP16_MAX))
    assert to_fp16(fused).overflowing_weights == {}


def test_an_activation_beyond_fp16_makes_its_neighbours_islands_by_name(fused: onnx_ir.Model) -> None:
    for index, name in ((1, f"{BLOCK}.mlp.fc1/MatMul"), (1, f"{BLOCK}.mlp.fc1/Add")):
        change(fused, name, index, lambda weight: weight * 3e5)
    change(fused, f"{BLOCK}.mlp.fc2/MatMul", 1, lambda weight: weight / 3e5)
    wanted = run(inline_bodies(fused), IMAGES)
    graph, facts = lowered(fused)
    beyond = facts["ranges"]["beyond"]
    hidden = str(node_of(fused, f"{BLOCK}.mlp.fc1/MatMul").outputs[0].name)
    assert beyond[hidden] > FP16_MAX
    layers = {f"{BLOCK}.mlp.{layer}" for layer in ("fc1/MatMul", "fc1/Add", "act/Gelu", "fc2/MatMul")}
    assert set(facts["islands"]) - HEAD == layers
    assert all("beyond FP16's 65504" in facts["islands"][layer] for layer in layers)
    logits = run(graph, IMAGES)
    assert np.isfinite(logits).all()
    assert relative_error(logits, wanted) <= 5e-3


def test_an_activation_inside_the_attention_makes_the_whole_attention_an_island(fused: onnx_ir.Model) -> None:
    # v of segments 0..3 grows: HardSwish, context and position encoding grow with it, softmax and the local segment do not
    segment = 16

    def larger_v(weight: NDArray[Any]) -> NDArray[Any]:
        for s in range(4):
            weight[..., (3 * s + 2) * segment : (3 * s + 3) * segment] *= 1e5
        return weight

    def smaller_attention(weight: NDArray[Any]) -> NDArray[Any]:
        weight[: 4 * segment] /= 1e5
        return weight

    for name in ("MatMul", "Add"):
        change(fused, f"{BLOCK}.att.qkv/{name}", 1, larger_v)
    change(fused, f"{BLOCK}.att.proj/MatMul", 1, smaller_attention)
    portable = inline_bodies(fused)
    wanted = run(portable, IMAGES)
    inside = {str(value.name) for each in portable.graph for value in each.outputs}
    outside = {str(value.name) for each in fused.graph for value in each.outputs}
    graph, facts = lowered(fused)
    assert set(facts["ranges"]["beyond"]) & (inside - outside), "the case does not reach into the body"
    assert f"{BLOCK}.att/GmfGroupMixAttention" in facts["islands"]
    logits = run(graph, IMAGES)
    assert np.isfinite(logits).all()
    # v grew 1e5-fold, and with it the rounding of the FP16 tensors before the island: measured 1.6e-2
    assert relative_error(logits, wanted) <= 5e-2


def test_weights_that_fp16_rounds_to_zero_are_named_with_their_share(fused: onnx_ir.Model) -> None:
    def half_tiny(weight: NDArray[Any]) -> NDArray[Any]:
        weight[: len(weight) // 4] = 1e-9
        return weight

    weight = change(fused, f"{BLOCK}.mlp.fc2/MatMul", 1, half_tiny)
    change(fused, f"{BLOCK}.mlp.fc1/MatMul", 1, lambda values: np.where(np.arange(len(values))[:, None] < 2, 0, values))
    assert to_fp16(fused).flushed_weights == {weight: pytest.approx(0.25, abs=0.01)}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_not_finite_in_fp32_are_an_error_by_name(fused: onnx_ir.Model, value: float) -> None:
    def spoilt(weight: NDArray[Any]) -> NDArray[Any]:
        weight[0, 0] = value
        return weight

    change(fused, f"{BLOCK}.mlp.fc1/MatMul", 1, spoilt)
    first = str(node_of(fused, f"{BLOCK}.mlp.fc1/MatMul").outputs[0].name)
    with pytest.raises(PrecisionError, match="is not finite in FP32 already") as refusal:
        lowered(fused)
    assert first in refusal.value.problem


def test_the_range_check_finds_the_largest_magnitude_of_all_batches(fused: onnx_ir.Model) -> None:
    portable = inline_bodies(fused)
    one = activation_ranges(portable, [IMAGES])
    several = activation_ranges(portable, [IMAGES[:1], 3 * IMAGES[1:3], IMAGES[3:]])
    assert (one.images, several.images) == (4, 4)
    assert one.tensors > 300
    assert 0 < one.largest < NEAR
    assert (one.near, one.beyond) == ({}, {})
    assert several.largest >= one.largest or several.largest_tensor != one.largest_tensor


def test_activations_near_the_range_are_named_but_are_no_islands(fused: onnx_ir.Model) -> None:
    change(fused, f"{BLOCK}.mlp.fc1/Add", 1, lambda bias: np.full_like(bias, 4e4))
    change(fused, f"{BLOCK}.mlp.fc2/MatMul", 1, lambda weight: weight * 1e-4)
    found = activation_ranges(inline_bodies(fused), [IMAGES])
    hidden = str(node_of(fused, f"{BLOCK}.mlp.fc1/Add").outputs[0].name)
    assert 3.9e4 < found.near[hidden] < 4.1e4
    assert found.beyond == {}
    assert islands_for(fused, found.beyond) == {}


def test_an_activation_that_no_layer_owns_is_an_error(fused: onnx_ir.Model) -> None:
    with pytest.raises(PrecisionError, match="no layer of the fused graph owns activation nowhere/x"):
        islands_for(fused, {"nowhere/x": 1e6})


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_the_range_check_keeps_no_activation_that_is_used_up() -> None:
    """119 activations of 12 MiB one after the other; all at once are 1.4 GiB."""
    script = """
import resource
import numpy as np
import onnx_ir
import onnxruntime
from gmf_edge.precision.fp16_range import activation_ranges
image = np.ones((1, 3, 1024, 1024), np.float32)
FLOAT = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
value = images = onnx_ir.Value(name="images", type=FLOAT, shape=onnx_ir.Shape(["batch", 3, 1024, 1024]))
nodes = []
for number in range(60):
    for op in ("Sin", "Sigmoid"):
        nodes.append(onnx_ir.node(op, [value]))
        value = nodes[-1].outputs[0]
        value.name, value.type = f"{op}_{number}", FLOAT
graph = onnx_ir.Model(onnx_ir.Graph([images], [value], nodes=nodes, opset_imports={"": 20}, name="chain"), ir_version=10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = activation_ranges(graph, [image])
print(found.tensors, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tensors, mib = map(int, done.stdout.split())
    assert tensors == 119
    assert mib < 200  # 38 measured
