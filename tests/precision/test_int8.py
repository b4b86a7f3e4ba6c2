"""Q/DQ: where they stand, what they hold, that ONNX Runtime computes in integers, and that pico keeps its accuracy."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir
import pytest
from int8_helpers import PREPROCESS, make_harder, portable_session

from gmf_edge.errors import CalibrationError, PrecisionError, SpecError
from gmf_edge.ops.group_mix_attention import OP_TYPE
from gmf_edge.precision.activations import observe
from gmf_edge.precision.bias_correction import bias_input, mean_output_error
from gmf_edge.precision.calibrate import calibrate, ranges_from
from gmf_edge.precision.calibration_images import draw
from gmf_edge.precision.fp16 import to_fp16
from gmf_edge.precision.int8 import dequantized, insert_qdq, quantized_weight
from gmf_edge.precision.int8_layers import OPTION_OF_KIND, chosen_layers, quantizable_layers
from gmf_edge.precision.ranges import Provenance, TensorRange
from gmf_edge.precision.recipe import RECIPES, Recipe
from gmf_edge.precision.smoothing import smooth, smoothing_factors
from gmf_edge.rewrite.bodies import inline_bodies

LINEARS = Recipe(proj=True)
EVERYTHING = dataclasses.replace(
    LINEARS, dense_convolutions=True, first_convolution=True, depthwise=True, residual_adds=True, head=True, min_features=1
)
NO_PROVENANCE = Provenance("", None, "", {}, "mse", 0.0, 0.0, 32, 0)


def found_ranges(graph, images, recipe, count=64):
    drawn = draw(images, count)
    exponents = {"smoothing": recipe.smoothing, "proj_smoothing": recipe.proj_smoothing}
    statistics = observe(graph, lambda: (b.inputs for b in drawn.batches(PREPROCESS, 16)), images=count, **exponents)
    return ranges_from(statistics, recipe, dataclasses.replace(NO_PROVENANCE, **exponents))


@pytest.fixture(scope="module")
def ranges(fused_path, digits):
    return found_ranges(onnx_ir.load(fused_path), digits, LINEARS)


def nodes_of(graph, *op_types):
    return [node for node in graph.graph if node.op_type in op_types]


# where


def test_layers_are_told_apart(fused):
    kinds = [layer.kind for layer in quantizable_layers(fused)]
    blocks = 5
    expected = dict.fromkeys(("qkv", "proj", "fc1", "fc2"), blocks) | {"residual": 2 * blocks, "depthwise": 4 + blocks}
    expected |= {"first_convolution": 1, "convolution": 1 + 4, "head": 1}
    assert {kind: kinds.count(kind) for kind in set(kinds)} == expected
    assert set(expected) | {"linear"} == set(OPTION_OF_KIND)


def test_residual_reads_its_skip_input(fused):
    residuals = [layer for layer in quantizable_layers(fused) if layer.kind == "residual"]
    linears = {node.outputs[0].name for node in fused.graph if node.op_type == "Add" and node.inputs[1].const_value is not None}
    assert residuals
    assert not any(layer.tensor in linears for layer in residuals)


def test_balanced_quantises_linears_but_proj_and_nothing_else(fused, ranges):
    lowered = insert_qdq(fused, ranges, RECIPES["balanced"])
    quantizers = nodes_of(lowered, "QuantizeLinear")
    assert len(quantizers) == 3 * 5
    readers = {use.node.op_type for node in nodes_of(lowered, "DequantizeLinear") for use in node.outputs[0].uses()}
    assert readers == {"MatMul"}


@pytest.mark.parametrize("option", sorted(set(OPTION_OF_KIND.values())))
def test_each_option_adds_its_kinds_alone(fused, option):
    nothing = Recipe(qkv=False, mlp=False)
    assert chosen_layers(fused, nothing) == []
    chosen = chosen_layers(fused, dataclasses.replace(nothing, **{option: True}))
    assert chosen
    assert {OPTION_OF_KIND[layer.kind] for layer in chosen} == {option}


def test_attention_and_layer_norm_are_left_alone(fused, ranges):
    lowered = insert_qdq(fused, ranges, EVERYTHING)
    bodies = [[onnx_ir.to_proto(f).SerializeToString() for f in graph.functions.values()] for graph in (fused, lowered)]
    assert bodies[0] == bodies[1]
    for node in nodes_of(lowered, OP_TYPE, "LayerNormalization", "HardSwish", "Gelu", "GlobalAveragePool"):
        for value in node.inputs:
            producer = value.producer()
            assert producer is None or producer.op_type not in ("QuantizeLinear", "DequantizeLinear")


def test_exceptions_and_keep_leave_a_layer_as_it_was(fused, ranges):
    name = "groupmixformer_backbone.1.gma_stage.0.mlp.fc1/MatMul"
    for lowered in (
        insert_qdq(fused, ranges, LINEARS, exceptions=frozenset({name})),
        insert_qdq(fused, ranges, Recipe(proj=True, keep=("*backbone.1*.mlp.fc1/*",))),
    ):
        node = next(node for node in lowered.graph if node.name == name)
        assert node.inputs[0].producer().op_type == "LayerNormalization"
        assert node.inputs[1].const_value is not None
        assert len(nodes_of(lowered, "QuantizeLinear")) == 4 * 5 - 1


def test_unknown_exception_is_refused(fused, ranges):
    with pytest.raises(SpecError, match="fc9 is not a layer"):
        insert_qdq(fused, ranges, LINEARS, exceptions=frozenset({"fc9"}))


def test_small_linears_stay(fused):
    assert chosen_layers(fused, Recipe(min_features=1000)) == []
    assert len(chosen_layers(fused, Recipe(min_features=41))) < len(chosen_layers(fused, Recipe(min_features=40)))


# what


@pytest.mark.parametrize("scales", ["float32", "float16"])
def test_zero_points_are_there_and_zero_and_scales_are_positive(fused, ranges, scales):
    lowered = insert_qdq(fused, ranges, EVERYTHING, scales=scales)
    for node in nodes_of(lowered, "QuantizeLinear", "DequantizeLinear"):
        scale, zero = (node.inputs[i].const_value.numpy() for i in (1, 2))
        assert zero.dtype == np.int8
        assert zero.shape == scale.shape
        assert not zero.any()
        assert scale.dtype == np.dtype(scales)
        assert (scale > 0).all()
        if node.op_type == "DequantizeLinear" and node.inputs[0].const_value is not None:
            codes = node.inputs[0].const_value.numpy()
            assert codes.dtype == np.int8
            assert scale.shape == (codes.shape[node.attributes["axis"].as_int()],)
            assert np.abs(codes.astype(int)).max() == 127
        else:
            assert scale.shape == ()


@pytest.mark.parametrize(("shape", "axis"), [((40, 24), 1), ((24, 40), 0), ((24, 5, 3, 3), 0)])
def test_weight_error_is_at_most_half_a_step_of_its_channel(shape, axis):
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal(shape) * 10.0 ** rng.uniform(-4, 4, [s if i == axis else 1 for i, s in enumerate(shape)])).astype(
        np.float32
    )
    codes, steps = quantized_weight(weight, axis)
    half_step = steps.reshape([-1 if i == axis else 1 for i in range(weight.ndim)]) / 2
    assert (np.abs(dequantized(codes, steps, axis) - weight) <= half_step * (1 + 1e-5)).all()


def test_dead_channel_stays_zero():
    weight = np.zeros((8, 3), np.float32)
    weight[:, 1] = 2.0
    codes, steps = quantized_weight(weight, 1)
    assert (steps > 0).all()
    assert not dequantized(codes, steps, 1)[:, [0, 2]].any()
    np.testing.assert_allclose(dequantized(codes, steps, 1)[:, 1], 2.0, rtol=1e-6)


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(PrecisionError, match="fc1 has weights that are NaN"):
        quantized_weight(np.array([[1.0, np.nan]]), 1, name="fc1")


def test_scale_that_fp16_cannot_hold_is_refused():
    with pytest.raises(PrecisionError, match="fc1 needs the scale"):
        quantized_weight(np.full((2, 2), 1e-7), 1, "float16", "fc1")
    with pytest.raises(PrecisionError, match="float16 cannot hold"):
        quantized_weight(np.full((2, 2), 1e9), 1, "float16")


def test_codes_are_rounded_with_the_scale_that_is_stored():
    # where FP16 has few digits left: rounding with the exact scale instead would be off by up to 2 % of 127 steps
    weight = np.random.default_rng(1).standard_normal((64, 8)) * 1e-4
    codes, steps = quantized_weight(weight, 1, "float16")
    assert steps.dtype == np.float16
    error = np.abs(dequantized(codes, steps, 1) - weight) / steps.astype(np.float64)
    # a scale that was rounded down leaves the largest weights beyond code 127
    assert error[np.abs(codes) < 127].max() <= 0.501


def test_the_same_arguments_give_the_same_bytes(fused, ranges):
    first, second = (onnx_ir.to_proto(insert_qdq(fused, ranges, EVERYTHING)).SerializeToString() for _ in range(2))
    assert first == second


def test_the_graph_given_is_left_as_it_is(fused, ranges):
    before = onnx_ir.to_proto(fused).SerializeToString()
    insert_qdq(fused, ranges, EVERYTHING)
    assert onnx_ir.to_proto(fused).SerializeToString() == before


def test_fp16_scales_need_opset_19(fused, ranges):
    fused.opset_imports[""] = 17
    with pytest.raises(SpecError, match="need opset 19"):
        insert_qdq(fused, ranges, LINEARS, scales="float16")


def test_ranges_of_another_graph_are_refused(fused, ranges):
    tensors = {name: found for name, found in ranges.tensors.items() if not name.startswith("gelu")}
    with pytest.raises(CalibrationError, match=r"have none for gelu, which .*fc2/MatMul reads"):
        insert_qdq(fused, dataclasses.replace(ranges, tensors=tensors), LINEARS)


def test_ranges_of_another_smoothing_are_refused(fused, ranges):
    with pytest.raises(CalibrationError, match=r"with smoothing 0, the recipe has 0\.5"):
        insert_qdq(fused, ranges, Recipe(smoothing=0.5))
    with pytest.raises(CalibrationError, match="with proj_smoothing 0, the recipe has 1"):
        insert_qdq(fused, ranges, Recipe(proj_smoothing=1.0))


# ONNX Runtime and the FP16 lowering


def test_onnx_runtime_multiplies_in_integers(fused, ranges, tmp_path):
    portable_session(insert_qdq(fused, ranges, LINEARS), tmp_path, tmp_path / "optimized.onnx")
    optimized = onnx.load(tmp_path / "optimized.onnx")
    kinds = [node.op_type for node in optimized.graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 4 * 5
    constants = {tensor.name for tensor in optimized.graph.initializer}
    assert not [node for node in optimized.graph.node if node.op_type == "MatMul" and node.input[1] in constants]
    assert "DequantizeLinear" not in kinds


@pytest.mark.parametrize("scales", ["float32", pytest.param("float16", marks=pytest.mark.slow)])
def test_lowered_to_fp16_it_still_is_the_model(fused, ranges, scales, digits, logits, tmp_path):
    images = draw(digits, 64, 1)
    lowered = insert_qdq(fused, ranges, EVERYTHING, scales=scales)
    to_fp16(lowered)
    onnx_ir.save(inline_bodies(lowered), tmp_path / "lowered.onnx")
    onnx.checker.check_model(str(tmp_path / "lowered.onnx"), full_check=True)
    reference, found = logits(fused, images), logits(lowered, images)
    assert cosine(reference, found) >= 0.999


def cosine(a, b):
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean())


@pytest.mark.parametrize(
    ("recipe", "seed"),
    [
        ("balanced", 0),
        *(pytest.param("balanced", seed, marks=pytest.mark.slow) for seed in (1, 2)),
        ("fastest", 0),
        ("accurate", 0),
    ],
)
def test_pico_loses_nothing_in_int8(fused, fused_path, digits, test_digits, exact_logits, logits, recipe, seed, tmp_path):
    recipe = RECIPES[recipe]
    found = calibrate(fused_path, digits, PREPROCESS, recipe, out=tmp_path / "ranges.json", count=100, seed=seed)
    reference = exact_logits
    quantized = logits(insert_qdq(fused, found, recipe), test_digits)
    hits, hits_quantized = (100 * float((x.argmax(1) == test_digits.labels).mean()) for x in (reference, quantized))
    assert hits > 99
    assert hits - hits_quantized <= 0.3
    assert cosine(reference, quantized) >= 0.9999


# the helps


@pytest.mark.parametrize(
    ("exponent", "proj_exponent", "places"),
    [pytest.param(0.5, 0.0, 10, marks=pytest.mark.slow), pytest.param(0.0, 1.0, 5, marks=pytest.mark.slow), (1.0, 0.3, 15)],
)
def test_smoothing_is_exact_in_fp32(fused, digits, logits, exponent, proj_exponent, places):
    smoothed = fused.clone()
    found = found_ranges(fused, digits, Recipe(smoothing=exponent, proj_smoothing=proj_exponent), 32)
    assert len(found.smoothing) == places
    smooth(smoothed, found.smoothing)
    images = draw(digits, 32, 1)
    reference = logits(fused, images)
    assert np.abs(logits(smoothed, images) - reference).max() <= 1e-4 * np.abs(reference).max()
    # a LayerNorm takes the factors in, proj needs a Mul
    assert len(list(smoothed.graph)) == len(list(fused.graph)) + (5 if proj_exponent else 0)


def test_smoothed_proj_is_quantised_after_its_mul(fused, digits):
    recipe = Recipe(proj=True, proj_smoothing=1.0)
    ranges = found_ranges(fused, digits, recipe, 32)
    lowered = insert_qdq(fused, ranges, recipe)
    muls = [node for node in lowered.graph if node.op_type == "Mul"]
    assert len(muls) == 5
    for node in muls:
        (use,) = node.outputs[0].uses()
        assert use.node.op_type == "QuantizeLinear"
        largest = ranges.tensors[node.outputs[0].name].largest
        channels = np.array(ranges.tensors[node.outputs[0].name].channel_largest) / np.array(ranges.smoothing[node.outputs[0].name])
        assert largest == pytest.approx(channels.max(), rel=1e-5)


def test_smoothing_factors_by_the_formula():
    factors = smoothing_factors(np.array([4.0, 0.0, 9.0]), np.array([[1.0, -4.0], [1.0, 1.0], [0.0, 0.0]]), 0.5)
    np.testing.assert_allclose(factors, [1.0, 1.0, 1.0])
    np.testing.assert_allclose(smoothing_factors(np.array([16.0]), np.array([[4.0]]), 0.75), [16**0.75 / 4**0.25], rtol=1e-6)


def test_smoothing_helps_a_layer_with_outliers(fused, digits, logits):
    make_harder(fused, "groupmixformer_backbone.3.gma_stage.0.mlp.fc1/MatMul")
    images = draw(digits, 64, 1)
    reference = logits(fused, images)
    errors = {}
    for exponent in (0.0, 0.5):
        recipe = Recipe(smoothing=exponent)
        lowered = insert_qdq(fused, found_ranges(fused, digits, recipe), recipe)
        errors[exponent] = float(np.linalg.norm(logits(lowered, images) - reference) / np.linalg.norm(reference))
    assert errors[0.5] <= 0.1 * errors[0.0]


def test_smoothing_of_another_graph_is_refused(fused):
    with pytest.raises(CalibrationError, match="smooth nowhere"):
        smooth(fused, {"nowhere": (1.0,)})
    norm = nodes_of(fused, "LayerNormalization")[0].outputs[0].name
    with pytest.raises(CalibrationError, match="do not fit"):
        smooth(fused, {norm: (1.0, 2.0)})


def test_bias_correction_takes_the_mean_error_out(fused, digits):
    """The mean output of a layer with rounded weights, on inputs with that mean, is the exact layer's."""
    rng = np.random.default_rng(0)
    for layer in quantizable_layers(fused):
        if layer.weight_axis is None or layer.kind == "depthwise":
            continue
        weight = layer.node.inputs[1].const_value.numpy().astype(np.float64)
        codes, steps = quantized_weight(weight, layer.weight_axis)
        rounded = dequantized(codes, steps, layer.weight_axis)
        inputs = weight.shape[0] if layer.node.op_type == "MatMul" else weight.shape[1]
        mean = rng.standard_normal(inputs)
        error = mean_output_error(layer, weight, rounded, mean)
        if layer.node.op_type == "Conv":
            expected = np.einsum("oihw,i->o", weight - rounded, mean)
        elif layer.node.op_type == "Gemm":
            expected = (weight - rounded) @ mean
        else:
            expected = mean @ (weight - rounded)
        np.testing.assert_allclose(error, expected, atol=1e-12)
        assert error.shape == (weight.shape[layer.weight_axis],)
        assert bias_input(layer) is not None


def test_bias_correction_of_a_depthwise_convolution_reads_its_own_channel(fused):
    layer = next(layer for layer in quantizable_layers(fused) if layer.kind == "depthwise" and bias_input(layer))
    weight = layer.node.inputs[1].const_value.numpy()
    mean = np.arange(weight.shape[0], dtype=np.float64)
    error = mean_output_error(layer, weight, np.zeros_like(weight), mean)
    np.testing.assert_allclose(error, weight.astype(np.float64).sum(axis=(1, 2, 3)) * mean, rtol=1e-12)


def test_bias_correction_changes_biases_and_nothing_else(fused, ranges, digits, logits):
    plain = insert_qdq(fused, ranges, LINEARS)
    corrected = insert_qdq(fused, ranges, Recipe(proj=True, bias_correction=True))
    assert [node.op_type for node in plain.graph] == [node.op_type for node in corrected.graph]
    changed = {name for name in corrected.graph.initializers if name not in plain.graph.initializers}
    assert len(changed) == 4 * 5
    assert all(name.endswith("/corrected/bias") for name in changed)
    images = draw(digits, 64, 1)
    reference = logits(fused, images)
    assert cosine(reference, logits(corrected, images)) >= 0.9999


def test_tensor_that_is_all_zero_gets_a_scale(fused, ranges):
    silent = {name: dataclasses.replace(found, threshold=0.0, largest=0.0) for name, found in ranges.tensors.items()}
    lowered = insert_qdq(fused, dataclasses.replace(ranges, tensors=silent), LINEARS)
    assert all(float(node.inputs[1].const_value.numpy()) == 1.0 for node in nodes_of(lowered, "QuantizeLinear"))
    assert isinstance(silent["images"], TensorRange)
