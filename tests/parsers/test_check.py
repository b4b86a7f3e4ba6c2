"""The exported graphs against what TensorRT's ONNX parsers take, and a graph for every kind of rule that breaks it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from graph_tools import graph_of, node, noise, relative_error, run
from quantized_graph import quantized

pytest.importorskip("onnxscript")

from gmf_edge.bundle import open_bundle
from gmf_edge.parsers.check import RULES, unfit
from gmf_edge.parsers.operators import IMPORTERS, PARSERS
from gmf_edge.precision.fp16 import to_fp16
from gmf_edge.rewrite.bodies import drop_bodies, inline_bodies
from gmf_edge.rewrite.hard_swish import split_hard_swish
from gmf_edge.rewrite.opset import for_target
from gmf_edge.spec import TARGETS

OLD, NEW = "tensorrt-8.6", "tensorrt-10.3"
STRONG = tuple(target for target in PARSERS if TARGETS[target].typing == "strong")
ZERO, HALF = np.array(0, np.int8), np.array(0.5, np.float32)
QDQ = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "out")]


def rules(graph: onnx_ir.Model, target: str) -> set[str]:
    return {found.rule for found in unfit(graph, target)}


def wanted(opset: int) -> tuple[str, ...]:
    return tuple(target for target in PARSERS if TARGETS[target].opset == opset)


def test_every_tensorrt_that_is_targeted_has_a_parser() -> None:
    assert set(PARSERS) == {name for name in TARGETS if name.startswith("tensorrt")}


GRAPHS = [("portable.onnx", 20), ("plugin.onnx", 20), ("portable-opset17.onnx", 17), ("plugin-opset17.onnx", 17)]


@pytest.mark.parametrize(("name", "opset"), GRAPHS)
def test_the_fp16_bundles_graphs_are_fit_for_every_version_that_gets_them(odd_pico: Any, name: str, opset: int) -> None:
    graph = onnx_ir.load(odd_pico.bundle / name)
    assert [str(found) for target in wanted(opset) for found in unfit(graph, target)] == []


def test_a_bundle_says_which_versions_its_graphs_are_fit_for(odd_pico: Any) -> None:
    told = open_bundle(odd_pico.bundle).manifest.lowering["parsers"]
    assert told == {name: {"fit": [PARSERS[target].version for target in wanted(opset)], "unfit": []} for name, opset in GRAPHS}
    assert told["portable.onnx"]["fit"] == ["10.3", "10.13", "11"]


@pytest.mark.parametrize("form", ["portable", "plugin"])
def test_fp32_and_int8_graphs_are_fit_for_every_version_that_gets_them(odd_pico: Any, form: str) -> None:
    finish = inline_bodies if form == "portable" else drop_bodies
    fused = onnx_ir.load(odd_pico.fused)
    strong = quantized(fused, "float16")
    to_fp16(strong)
    weak = quantized(fused, "float32")
    for lowered, targets in ((fused, tuple(PARSERS)), (strong, STRONG), (weak, (OLD,))):
        for target in targets:
            graph = for_target(finish(lowered), TARGETS[target])
            assert [str(found) for found in unfit(graph, target)] == [], (form, target)
    # FP16 scales are read as float by 8.6, and its opset ends where they begin
    assert "quantization" in rules(for_target(finish(strong), TARGETS[NEW]), OLD)


# one graph a kind: (rule, version that refuses it, nodes, constants, opset)
X = (2, 4, 6, 6)
WEIGHT = np.zeros((4, 1, 3, 3), np.float32)
BROKEN: list[tuple[str, str, list[onnx.NodeProto], dict[str, Any], int]] = [
    ("opset", OLD, [node("Erf", "x", "out")], {}, 20),
    ("operator", OLD, [node("Gelu", "x", "out")], {}, 20),
    ("operator", NEW, [node("Sinh", "x", "out")], {}, 20),
    ("operator", NEW, [node("LayerNormalization", "x s", "out")], {"s": np.ones(6, np.float32)}, 16),
    ("element type", OLD, [node("Cast", "x", "h", to=16), node("Erf", "h", "e"), node("Cast", "e", "out", to=1)], {}, 17),
    ("element type", "tensorrt-11", [node("Cast", "x", "h", to=16), node("HardSwish", "h", "s"), node("Cast", "s", "out", to=1)], {}, 20),
    ("cast target", NEW, [node("Cast", "x", "d", to=11), node("Cast", "d", "out", to=1)], {}, 20),
    ("initializer", NEW, [node("Conv", "x w", "out", group=4)], {}, 20),
    ("initializer", OLD, [node("Add", "x d", "out")], {"d": np.array(2**40, np.int64)}, 17),
    ("same or broadcast", NEW, [node("Mul", "x y", "out")], {"y": np.ones(5, np.float32)}, 20),
    ("axis in range", NEW, [node("Softmax", "x", "out", axis=4)], {}, 20),
    ("convolution", NEW, [node("Conv", "x w", "out", group=2)], {"w": WEIGHT}, 20),
    ("convolution", NEW, [node("Conv", "x w b", "out", group=4)], {"w": WEIGHT, "b": np.zeros(3, np.float32)}, 20),
    ("convolution", NEW, [node("Conv", "x w", "out", group=4, kernel_shape=[5, 5])], {"w": WEIGHT}, 20),
    ("matrices", NEW, [node("Gemm", "x w", "out")], {"w": np.zeros((6, 6), np.float32)}, 20),
    ("matrices", NEW, [node("MatMul", "x w", "out")], {"w": np.zeros((5, 6), np.float32)}, 20),
    ("gelu form", NEW, [node("Gelu", "x", "out", approximate="sigmoid")], {}, 20),
    ("layer normalization", NEW, [node("LayerNormalization", "x s", "out m")], {"s": np.ones(6, np.float32)}, 20),
    ("layer normalization", NEW, [node("LayerNormalization", "x s", "out")], {"s": np.ones((6, 6), np.float32)}, 20),
    ("quantization", NEW, [node("QuantizeLinear", "x s", "q"), QDQ[1]], {"s": HALF, "z": ZERO}, 20),
    ("quantization", NEW, QDQ, {"s": -HALF, "z": ZERO}, 20),
    ("quantization", NEW, QDQ, {"s": HALF, "z": np.array(1, np.int8)}, 20),
    (
        "quantization",
        OLD,
        [node("Cast", "x", "h", to=10), node("QuantizeLinear", "h s z", "q"), QDQ[1]],
        {"s": HALF.astype(np.float16), "z": ZERO},
        17,
    ),
    (
        "quantization",
        NEW,
        [node("QuantizeLinear", "x s z", "q", axis=1), node("DequantizeLinear", "q s z", "out", axis=1)],
        {"s": np.ones(4, np.float32), "z": np.zeros(4, np.int8)},
        20,
    ),
    ("int8 constant", OLD, [node("Cast", "c", "f", to=1), node("Add", "x f", "out")], {"c": np.ones(6, np.int8)}, 17),
    ("reshape", NEW, [node("Reshape", "x s", "out")], {"s": np.array([-1, -1], np.int64)}, 20),
    ("reshape", NEW, [node("Reshape", "x s", "out", allowzero=1)], {"s": np.array([0, 4], np.int64)}, 20),
    ("reshape", NEW, [node("Reshape", "x s", "out")], {"s": np.array([2, 4, 36, 1, 0], np.int64)}, 20),
    ("split", NEW, [node("Split", "x s", "out b", axis=1)], {"s": np.array([1, 1], np.int64)}, 20),
    ("split", OLD, [node("Split", "x", "out b", axis=1, num_outputs=2)], {}, 17),
    ("split", OLD, [node("Split", "x", "out b c", axis=1)], {}, 17),
]  # fmt: skip


def made(nodes: list[onnx.NodeProto], constants: dict[str, Any], opset: int) -> onnx_ir.Model:
    """Types where ONNX's own inference gives them; FP32 where a graph is too wrong for it."""
    try:
        graph = graph_of(nodes, constants, X, opset=opset)
    except onnx.shape_inference.InferenceError:  # it refuses in strict mode only
        raise AssertionError("the graph cannot be made") from None
    for each in graph.graph:
        for value in each.outputs:
            value.dtype = value.dtype or onnx_ir.DataType.FLOAT
    return graph


@pytest.mark.parametrize(("rule", "target", "nodes", "constants", "opset"), BROKEN)
def test_a_graph_that_breaks_a_rule_is_told_by_node_rule_and_version(
    rule: str, target: str, nodes: list[onnx.NodeProto], constants: dict[str, Any], opset: int
) -> None:
    graph = made(nodes, constants, opset)
    if rule == "initializer" and "w" not in constants and target == NEW:
        # weights from outside
        graph.graph.inputs.append(
            onnx_ir.Value(name="w", type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT), shape=onnx_ir.Shape([4, 1, 3, 3]))
        )
        graph.graph.node("layer/out").replace_input_with(1, graph.graph.inputs[1])
    found = [each for each in unfit(graph, target) if each.rule == rule]
    assert found, [str(each) for each in unfit(graph, target)]
    text = str(found[0])
    assert text.startswith(f"TensorRT {PARSERS[target].version}: {found[0].node}: ")
    assert rule in text


def test_every_rule_is_broken_by_a_graph() -> None:
    assert {name.replace("_", " ") for name in RULES} <= {rule for rule, *_ in BROKEN}
    assert {rule for row in IMPORTERS.values() for rule in row.rules} == set(RULES)


def test_operands_of_two_types_are_for_weak_typing_only() -> None:
    half = onnx_ir.DataType.FLOAT16
    graph = made([node("Cast", "x", "h", to=10), node("Mul", "h c", "out")], {"c": np.ones(6, np.float32)}, 17)
    graph.graph.node("layer/out").outputs[0].dtype = half
    assert rules(graph, OLD) == set()
    assert "one type" in rules(graph, NEW)
    text = next(str(found) for found in unfit(graph, NEW) if found.rule == "one type")
    assert "layer/out: Mul of FLOAT and FLOAT16 in a strongly typed network" in text


def test_layer_normalization_in_fp16_is_for_weak_typing_only() -> None:
    """8.6 is told the statistics' type by stash_type; strongly typed networks reject that call."""
    scale = np.ones(6, np.float16)
    graph = made(
        [node("Cast", "x", "h", to=10), node("LayerNormalization", "h s", "n"), node("Cast", "n", "out", to=1)], {"s": scale}, 17
    )
    assert rules(graph, OLD) == set()
    assert all("layer normalization" in rules(graph, target) for target in STRONG)


def test_a_plugin_node_must_be_found_and_be_of_one_type(odd_pico: Any) -> None:
    graph = onnx_ir.load(odd_pico.bundle / "plugin.onnx")
    [first, *_] = [each for each in graph.graph if each.op_type == "GmfGroupMixAttention"]
    del first.attributes["plugin_namespace"]
    assert rules(graph, "tensorrt-10.13") == {"plugin lookup"}
    first.attributes["plugin_namespace"] = onnx_ir.AttrString("plugin_namespace", "")
    first.attributes["kernels"] = onnx_ir.AttrString("kernels", "R01G")
    assert "plugin types" in rules(graph, "tensorrt-10.13")  # the unpacked norm weights are FP32
    assert "operator" in {found.rule for found in unfit(graph, "tensorrt-10.13", plugins=frozenset())}


def test_a_function_of_the_model_is_not_what_was_read(odd_pico: Any) -> None:
    fused = onnx_ir.load(odd_pico.fused)
    assert "function" in rules(fused, OLD)
    assert "function" in rules(fused, NEW)


def test_hard_swish_of_bf16_becomes_operators_that_every_importer_takes() -> None:
    nodes = [node("Cast", "x", "h", to=16), node("HardSwish", "h", "s"), node("Cast", "s", "out", to=1)]
    graph = made(nodes, {}, 20)
    graph.graph.node("layer/s").outputs[0].dtype = onnx_ir.DataType.BFLOAT16
    assert all(unfit(graph, target) for target in PARSERS)
    split = for_target(graph, TARGETS[NEW])
    assert tuple(target for target in PARSERS if not unfit(split, target)) == STRONG
    # its definition, in a type that ONNX Runtime computes here
    whole = made([node("HardSwish", "x", "out")], {}, 20)
    parts = whole.clone()
    assert split_hard_swish(parts, frozenset([onnx_ir.DataType.FLOAT])) == 1
    assert split_hard_swish(whole) == 0
    images = 4 * noise(*X, seed=1)
    assert relative_error(run(parts, images), run(whole, images)) <= 1e-6
