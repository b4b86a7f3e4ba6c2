"""What strong typing keeps of FP32: LayerNormalization's statistics, softmax and logits, by casts in the graph and by nothing else.

Judged on an emulated runtime (strong_typing.py) that computes every operator in the type of its operands, with the gate of the
precision, on a model whose activations FP16 holds and whose squared deviations it does not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import pytest
from graph_tools import graph_of, kinds, node, noise, relative_error, run
from int8_helpers import ASSETS, PREPROCESS
from numpy.typing import NDArray
from onnx_ir import DataType
from strong_typing import StronglyTyped

from gmf_edge.errors import SpecError
from gmf_edge.imageset import ImageSet
from gmf_edge.ops.group_mix_attention import INPUT_NAMES, OP_TYPE
from gmf_edge.precision.calibrate import calibrate
from gmf_edge.precision.fp16 import FP16_MAX, to_fp16
from gmf_edge.precision.fp16_range import activation_ranges
from gmf_edge.precision.fp32_sums import sum_in_fp32
from gmf_edge.precision.int8 import insert_qdq
from gmf_edge.precision.int8_layers import LINEAR_KINDS, constant_array, replace_constant
from gmf_edge.precision.lower import Lowered, Quantization, lower_precision
from gmf_edge.precision.recipe import Recipe
from gmf_edge.rewrite.bodies import drop_bodies, inline_bodies
from gmf_edge.rewrite.opset import for_target
from gmf_edge.spec import GATES, TARGETS, Precision
from gmf_edge.verify.batches import prove_batches
from gmf_edge.verify.judge import judge
from gmf_edge.verify.parity import measure

STAGES = "groupmixformer_backbone"
BLOCKS = {0: 1, 1: 1, 2: 2, 3: 1}
# powers of two: FP16 rounds the larger model exactly as it rounds the model, as long as nothing leaves its range
LARGER_RESIDUAL, LARGER_LOCAL = 256.0, 1024.0


@pytest.fixture(scope="module")
def pictures() -> NDArray[np.float32]:
    """The first packaged test pictures of each class, preprocessed."""
    with ImageSet.open(ASSETS / "pico-digits-test.zip") as images:
        return np.concatenate([batch.inputs for batch in images.spread(20, 0).batches(PREPROCESS, 20)])


def scaled(graph: onnx_ir.Model, name: str, indices: tuple[int, ...], factor: float) -> None:
    """Multiply constants of one node."""
    (found,) = [each for each in graph.graph if each.name == name]
    for index in indices:
        array = constant_array(found.inputs[index]) * np.float32(factor)
        replace_constant(graph, found, index, array, f"{name}/times_{factor:g}/{index}")


def with_larger_residual(graph: onnx_ir.Model, factor: float = LARGER_RESIDUAL) -> onnx_ir.Model:
    """The same function with a residual stream `factor` times as large in every stage.

    What writes into it is multiplied (the first CPE, which has the identity inside; proj, fc2 and the biases of all CPE) and what
    reads it, beside LayerNormalization, divided: the next patch embedding, or the head.
    """
    for stage, blocks in BLOCKS.items():
        for block in range(blocks):
            place = f"{STAGES}.{stage}.gma_stage.{block}"
            scaled(graph, f"{place}.cpe.proj/Conv", (1, 2) if block == 0 else (2,), factor)
            for linear in ("att.proj", "mlp.fc2"):
                for op in ("MatMul", "Add"):
                    scaled(graph, f"{place}.{linear}/{op}", (1,), factor)
        reader = f"patch_embed_layers.{stage + 1}.proj.conv1/Conv" if stage + 1 in BLOCKS else "head/Gemm"
        scaled(graph, reader, (1,), 1 / factor)
    return graph


def with_larger_local(graph: onnx_ir.Model, factor: float = LARGER_LOCAL) -> onnx_ir.Model:
    """The same function with a larger input of the LayerNorm inside each attention: segment 4's pointwise convolution is multiplied."""
    for each in graph.graph:
        if each.op_type == OP_TYPE:
            scaled(graph, str(each.name), (INPUT_NAMES.index("pointwise_0"),), factor)
    return graph


def lowered(fused: onnx_ir.Model, images: NDArray[np.float32], **options: Any) -> Lowered:
    return lower_precision(fused, Precision.FP16, "float32", inline_bodies, [images], **options)


def verdict(
    engine: StronglyTyped, images: NDArray[np.float32], reference: NDArray[np.float32], precision: Precision
) -> tuple[bool, str]:
    """The parity gate of a precision on these images, at batch sizes 1 and 4."""
    report = measure(
        engine,
        [images],
        reference,
        names=[str(index) for index in range(len(images))],
        batch_numerics=prove_batches(engine, images[:4], reference[:4], (1, 4)),
    )
    return judge(report, GATES[precision], has_trained_weights=True)


MODELS = {"residual": with_larger_residual, "inside the attention": with_larger_local}


@pytest.mark.parametrize("model", MODELS)
def test_fp16_statistics_fail_the_gate_and_casts_pass_it(fused, pictures, model) -> None:
    larger = MODELS[model](fused.clone())
    portable = inline_bodies(larger)
    reference = run(portable, pictures)
    assert relative_error(reference, run(inline_bodies(fused), pictures)) <= 1e-4, "the larger model is another function"
    assert activation_ranges(portable, [pictures]).largest < FP16_MAX / 16
    both = lowered(larger, pictures)
    # the graph for a runtime that reads stash_type says nothing to one that does not
    passed, reason = verdict(StronglyTyped(inline_bodies(both.weak)), pictures, reference, Precision.FP16)
    assert not passed
    assert "cosine" in reason, "it failed for another reason than its numbers"
    passed, reason = verdict(StronglyTyped(inline_bodies(both.strong)), pictures, reference, Precision.FP16)
    assert passed, reason


@pytest.mark.parametrize("model", ["as it is", "residual", pytest.param("inside the attention", marks=pytest.mark.slow)])
def test_int8_needs_the_casts_as_much(fused, pictures, digits, tmp_path, model) -> None:
    larger = MODELS[model](fused.clone()) if model in MODELS else fused.clone()
    reference = run(inline_bodies(larger), pictures)
    quantization = quantized(larger, digits, Recipe(), tmp_path)
    without = insert_qdq(larger, quantization.ranges, quantization.recipe, scales="float16")
    to_fp16(without, typing="weak")
    passed, reason = verdict(StronglyTyped(inline_bodies(without)), pictures, reference, Precision.INT8)
    assert passed is (model == "as it is"), reason
    strong = lower_precision(larger, Precision.INT8, "float32", inline_bodies, [pictures], quantization).strong
    passed, reason = verdict(StronglyTyped(inline_bodies(strong)), pictures, reference, Precision.INT8)
    assert passed, reason


def quantized(graph: onnx_ir.Model, digits: ImageSet, recipe: Recipe, folder: Any) -> Quantization:
    onnx_ir.save(graph, folder / "fused.onnx")
    found = calibrate(folder / "fused.onnx", digits, PREPROCESS, recipe, out=folder / "ranges.json", count=32, seed=0)
    return Quantization(found, recipe)


# what the graphs say


def types_of(each: onnx_ir.Node) -> set[Any]:
    return {value.dtype for value in (*each.inputs, *each.outputs) if value is not None}


def test_in_a_strong_graph_every_statistic_is_fp32_by_its_operands(fused, pictures) -> None:
    exact = inline_bodies(fused)
    strong = inline_bodies(lowered(fused, pictures).strong)
    gains = [[constant_array(value) for value in each.inputs[1:]] for each in norms(exact)]
    assert len(norms(strong)) == 3 * 5
    for each, unrounded in zip(norms(strong), gains, strict=True):
        assert types_of(each) == {DataType.FLOAT}, each.name
        for value, array in zip(each.inputs[1:], unrounded, strict=True):
            np.testing.assert_array_equal(constant_array(value), array)
        # as narrow before as behind: a kernel that fuses both casts reads and writes FP16
        before, behind = each.inputs[0].producer(), [use.node for use in each.outputs[0].uses()]
        assert {before.op_type, *(user.op_type for user in behind)} == {"Cast"}
        assert {before.inputs[0].dtype, *(user.outputs[0].dtype for user in behind)} == {DataType.FLOAT16}
    for each in strong.graph:
        if each.op_type in ("Softmax", "GlobalAveragePool", "Gemm"):
            assert types_of(each) == {DataType.FLOAT}, each.name
    assert not any(each.op_type.startswith("Reduce") for each in strong.graph), "a reduction that nothing here keeps in FP32"


def norms(graph: onnx_ir.Model) -> list[onnx_ir.Node]:
    return [each for each in graph.graph if each.op_type == "LayerNormalization"]


def test_in_a_weak_graph_stash_type_says_it_and_no_cast_pins_a_neighbour(fused, pictures) -> None:
    weak = for_target(inline_bodies(lowered(fused, pictures).weak), TARGETS["tensorrt-8.6"])
    for each in norms(weak):
        assert types_of(each) == {DataType.FLOAT16}, each.name
        # ONNX's default, 1, is FLOAT
        assert "stash_type" not in each.attributes or each.attributes["stash_type"].as_int() == 1
        assert not any(use.node.op_type == "Cast" for use in each.outputs[0].uses())
    # k, v and the context of each block, the picture and the head
    assert kinds(weak)["Cast"] == 3 * 5 + 2


def test_the_bundle_has_the_casts_where_types_decide_and_nowhere_else(odd_pico) -> None:
    graphs = {path.name: onnx_ir.load(path) for path in odd_pico.bundle.glob("*.onnx")}
    assert {name: {str(kind) for each in norms(graph) for kind in types_of(each)} for name, graph in graphs.items()} == {
        "portable.onnx": {"FLOAT"},
        "plugin.onnx": {"FLOAT"},
        "portable-opset17.onnx": {"FLOAT16"},
        "plugin-opset17.onnx": {"FLOAT16"},
    }
    assert {name: kinds(graph)["Cast"] for name, graph in graphs.items()} == {
        # to FP16 after each of three LayerNormalizations a block, to FP32 before it, and what the weak graphs have
        "portable.onnx": 6 * 5 + 17,
        "plugin.onnx": 4 * 5 + 2,
        "portable-opset17.onnx": 17,
        "plugin-opset17.onnx": 2,
    }


def test_the_plugins_kernels_get_the_gain_that_was_trained(fused, pictures) -> None:
    exact = {each.name: each for each in fused.graph if each.op_type == OP_TYPE}
    indices = [INPUT_NAMES.index(name) for name in ("norm_weight", "norm_bias")]
    wanted = {name: [constant_array(each.inputs[index]) for index in indices] for name, each in exact.items()}
    for each in drop_bodies(lowered(fused, pictures).strong).graph:
        if each.op_type == OP_TYPE:
            for index, array in zip(indices, wanted[each.name], strict=True):
                assert constant_array(each.inputs[index]).dtype == np.float32
                np.testing.assert_array_equal(constant_array(each.inputs[index]), array)
            others = {value.dtype for index, value in enumerate(each.inputs) if index not in indices}
            assert others == {DataType.FLOAT16}


def test_what_is_fp32_is_noted_apart_from_the_islands(fused, pictures) -> None:
    names = [str(each.name) for each in fused.graph if each.op_type in ("LayerNormalization", OP_TYPE)]
    facts = lowered(fused, pictures).facts
    assert facts["fp32_statistics"] == names
    # a weakly typed builder pins what is among the islands
    assert set(facts["islands"]) & set(names) == set()


# Q/DQ beside FP32


def spoilt_pairs(graph: onnx_ir.Model) -> list[str]:
    """DequantizeLinear nodes whose output an FP32 layer reads through a cast, and FP32 values cast on their way into FP16 codes."""
    found = []
    for each in graph.graph:
        if each.op_type == "DequantizeLinear":
            users = [use.node for use in each.outputs[0].uses()]
            found += [str(each.name) for user in users if user.op_type == "Cast" or user.outputs[0].dtype != each.outputs[0].dtype]
    return found


EVERYTHING = Recipe(head=True, proj=True, residual_adds=True, dense_convolutions=True)


@pytest.mark.parametrize(
    ("recipe", "beyond"),
    [
        (EVERYTHING, False),
        (Recipe(), True),
        pytest.param(Recipe(), False, marks=pytest.mark.slow),
        pytest.param(EVERYTHING, True, marks=pytest.mark.slow),
    ],
)
def test_no_fp32_layer_reads_what_an_fp16_scale_dequantised(fused, pictures, digits, tmp_path, recipe, beyond) -> None:
    hidden = f"{STAGES}.2.gma_stage.1.mlp"
    if beyond:
        for name in ("fc1/MatMul", "fc1/Add"):
            scaled(fused, f"{hidden}.{name}", (1,), 3e5)
        scaled(fused, f"{hidden}.fc2/MatMul", (1,), 1 / 3e5)
    quantization = quantized(fused, digits, recipe, tmp_path)
    result = lower_precision(fused, Precision.INT8, "float32", inline_bodies, [pictures], quantization)
    strong = inline_bodies(result.strong)
    assert kinds(strong)["DequantizeLinear"] > 0
    assert spoilt_pairs(strong) == []
    # types agree everywhere, or it raises
    logits = StronglyTyped(strong).infer(pictures)
    assert relative_error(logits, run(inline_bodies(fused), pictures)) <= 0.1
    layers, islands = set(result.facts["int8"]["layers"]), set(result.facts["islands"])
    assert layers & islands == set(), "a layer that a weakly typed builder is told to run in INT8 and in FP32"
    assert ("head/Gemm" in layers) is recipe.head
    fc1, fc2 = f"{hidden}.fc1/MatMul", f"{hidden}.fc2/MatMul"
    assert (fc1 in layers, fc2 in layers) == (not beyond, not beyond)
    if beyond:
        assert {fc1, fc2} <= set(result.facts["int8"]["exceptions"]) & islands
        assert any(note.startswith(f"{fc2} is not quantised: ") and "beyond FP16" in note for note in result.facts["int8"]["notes"])


def test_a_tensor_that_an_fp32_layer_and_an_fp16_layer_read_has_a_pair_of_each(fused, digits, tmp_path) -> None:
    recipe = Recipe()
    found = quantized(fused, digits, recipe, tmp_path).ranges
    fc1 = f"{STAGES}.0.gma_stage.0.mlp.fc1/MatMul"
    (layer,) = [each for each in fused.graph if each.name == fc1]
    twin = onnx_ir.node("MatMul", list(layer.inputs), name=f"{STAGES}.0.gma_stage.0.twin.fc1/MatMul")
    twin.outputs[0].name, twin.outputs[0].dtype = "twin", DataType.FLOAT
    fused.graph.insert_after(layer, twin)
    graph = insert_qdq(fused, found, recipe, scales="float16", fp32_layers=frozenset({fc1}))
    read = {each.name: [str(value.dtype) for value in each.inputs] for each in graph.graph if each.name in (fc1, twin.name)}
    assert read == {fc1: ["FLOAT", "FLOAT"], twin.name: ["FLOAT16", "FLOAT16"]}
    tensor = str(layer.inputs[0].name)
    pairs = [each for each in graph.graph if each.op_type == "QuantizeLinear" and each.inputs[0].name == tensor]
    assert len({each.outputs[0].name for each in pairs}) == 2


# FP32 sums of FP16 products


def product_graph(depth: int) -> onnx_ir.Model:
    """MatMul of [2, depth] by a [depth, 3] of ones, lowered to FP16."""
    graph = graph_of([node("MatMul", "x weight", "out")], {"weight": np.ones((depth, 3), np.float32)}, [2, depth])
    to_fp16(graph)
    return graph


def test_long_fp16_sums_get_stuck_and_the_casts_free_them() -> None:
    graph, ones = product_graph(4096), np.ones((2, 4096), np.float32)
    assert np.all(StronglyTyped(graph).infer(ones) == 4096)
    # 2048 + 1 is 2048 in FP16, and blocks of 16 end at 16 times that
    assert np.all(StronglyTyped(graph, accumulation_block=1).infer(ones) == 2048)
    summed = graph.clone()
    assert sum_in_fp32(summed, ("linear",)) == ["layer/out"]
    assert np.all(StronglyTyped(summed, accumulation_block=1).infer(ones) == 4096)
    assert np.array_equal(run(summed, ones), run(graph, ones))


@pytest.mark.parametrize("form", [inline_bodies, drop_bodies])
def test_fp32_sums_leave_the_weights_fp16_under_casts_in_every_form(fused, pictures, form) -> None:
    result = lowered(fused, pictures, fp32_sums=("fc2", "proj"))
    summed = result.facts["fp32_sums"]
    assert len(summed) == 2 * 5
    assert all(name.endswith(("fc2/MatMul", "proj/MatMul")) for name in summed)
    graph = form(result.strong)
    nodes = {str(each.name): each for each in graph.graph}
    for name in summed:
        product = nodes[name]
        assert types_of(product) == {DataType.FLOAT}
        casts = [value.producer() for value in product.inputs]
        assert [cast.op_type for cast in casts] == ["Cast", "Cast"]
        assert casts[1].inputs[0].is_initializer()
        assert {cast.inputs[0].dtype for cast in casts} == {DataType.FLOAT16}
        assert [(use.node.op_type, use.node.outputs[0].dtype) for use in product.outputs[0].uses()] == [("Cast", DataType.FLOAT16)]
    # the weak graph has no such casts: they would be pins
    assert {types_of(each) == {DataType.FLOAT16} for each in result.weak.graph if each.name in summed} == {True}


def test_fp32_sums_bring_the_worst_order_of_summation_nearer(fused, pictures) -> None:
    reference = run(inline_bodies(fused), pictures)
    errors = []
    for layers in ((), LINEAR_KINDS):
        strong = lowered(fused.clone(), pictures, fp32_sums=layers).strong
        errors.append(relative_error(StronglyTyped(inline_bodies(strong), 1).infer(pictures), reference))
    assert errors[1] <= 0.8 * errors[0], errors


def test_int8_layers_have_no_fp32_sums(fused, pictures, digits, tmp_path) -> None:
    quantization = quantized(fused, digits, Recipe(), tmp_path)
    result = lower_precision(fused, Precision.INT8, "float32", inline_bodies, [pictures], quantization, fp32_sums=LINEAR_KINDS)
    assert len(result.facts["fp32_sums"]) == 5
    assert all(name.endswith("att.proj/MatMul") for name in result.facts["fp32_sums"])
    assert spoilt_pairs(inline_bodies(result.strong)) == []


def test_an_unknown_kind_or_typing_is_refused(fused) -> None:
    with pytest.raises(SpecError, match="'fc9' is no kind of Linear"):
        sum_in_fp32(fused, ("fc9",))
    with pytest.raises(SpecError, match="typing 'duck' is not known"):
        to_fp16(fused, typing="duck")


# the emulation itself


def test_the_emulation_computes_the_fp32_model(fused, pictures) -> None:
    portable = inline_bodies(fused)
    for graph in (portable, for_target(portable, TARGETS["tensorrt-8.6"])):
        assert relative_error(StronglyTyped(graph).infer(pictures), run(graph, pictures)) <= 1e-5
        # FP32 sums know no blocks
        assert np.array_equal(StronglyTyped(graph, 1).infer(pictures), StronglyTyped(graph).infer(pictures))


def test_the_emulation_refuses_operands_of_two_types() -> None:
    graph = graph_of(
        [node("Cast", "x", "half", to=int(DataType.FLOAT16)), node("Add", "half gain", "out")], {"gain": noise(3)}, [2, 3]
    )
    with pytest.raises(AssertionError, match="has operands of the types"):
        StronglyTyped(graph).infer(noise(2, 3))


@pytest.mark.parametrize(("deviation", "survives"), [(200.0, True), (300.0, False)])
def test_emulated_fp16_statistics_overflow_where_the_square_does(deviation: float, survives: bool) -> None:
    constants = {"gain": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}
    graph = graph_of([node("LayerNormalization", "x gain bias", "out", epsilon=1e-6)], constants, [1, 4])
    x = np.array([[1000 - deviation, 1000 + deviation, 1000 - deviation, 1000 + deviation]], np.float32)
    wanted = run(graph, x)
    for typing in ("weak", "strong"):
        half = graph.clone()
        to_fp16(half, typing=typing)
        found = StronglyTyped(half).infer(x)
        # an infinite variance leaves nothing of the input
        assert np.allclose(found, wanted if survives or typing == "strong" else 0, atol=2e-3)


def test_emulated_sums_in_blocks_agree_with_exact_ones_where_nothing_is_rounded() -> None:
    whole = np.random.default_rng(0).integers(-3, 4, (2, 6, 9, 7)).astype(np.float32)
    constants = {
        "weight": np.random.default_rng(1).integers(-3, 4, (4, 3, 3, 3)).astype(np.float32),
        "bias": np.arange(4, dtype=np.float32),
    }
    graph = graph_of(
        [node("Conv", "x weight bias", "out", pads=[1, 1, 1, 1], strides=[2, 1], group=2)], constants, list(whole.shape)
    )
    wanted = run(graph, whole)
    to_fp16(graph)
    for block in (None, 16, 1):
        assert np.array_equal(StronglyTyped(graph, block).infer(whole), wanted)
