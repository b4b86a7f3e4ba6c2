"""BatchNorm after a convolution of constant weights goes into the weights; anything else is left alone, with the reason."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxscript")

import onnx_ir
from graph_tools import graph_of, kinds, node, noise, refusal, relative_error, run

from gmf_edge.rewrite.batchnorm_into_conv import RULE
from gmf_edge.rewrite.constants import batchnorm_affine

NORM = {
    "gain": noise(6, seed=1),
    "shift": noise(6, seed=2),
    "mean": noise(6, seed=3),
    "variance": np.abs(noise(6, seed=4)) + 0.1,
}
NORM_NODE = node("BatchNormalization", "y gain shift mean variance", "out", epsilon=1e-3)
IMAGES = noise(2, 4, 7, 5, seed=9)


def conv_graph(bias: bool = True, **attributes: object) -> onnx_ir.Model:
    group = int(str(attributes.get("group", 1)))
    constants = {"weight": noise(6, 4 // group, 3, 3), "bias": noise(6, seed=5), **NORM}
    conv = node("Conv", "x weight bias" if bias else "x weight", "y", **attributes)
    return graph_of([conv, NORM_NODE], constants, ["batch", 4, 7, 5])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "attributes", [{}, {"pads": [1, 1, 1, 1]}, {"strides": [2, 2], "pads": [1, 0, 1, 2]}, {"group": 2}, {"dilations": [2, 1]}]
)
def test_it_fires_with_equal_numbers_and_keeps_the_convolutions_attributes(bias: bool, attributes: dict[str, object]) -> None:
    graph = conv_graph(bias, **attributes)
    wanted = run(graph, IMAGES)
    assert RULE.apply_to_model(graph) == 1
    assert kinds(graph) == {"Conv": 1}
    assert graph.graph[0].name == "layer/y"
    assert relative_error(run(graph, IMAGES), wanted) <= 1e-6


def test_a_weight_of_three_uses_is_folded_for_each_and_stays_one_weight() -> None:
    nodes = [node("Conv", f"x{part} weight", f"y{part}") for part in "qkv"]
    nodes += [node("BatchNormalization", f"y{part} gain shift mean variance", f"z{part}") for part in "qkv"]
    split = node("Split", "x", "xq xk xv", axis=1, num_outputs=3)
    graph = graph_of(
        [split, *nodes, node("Concat", "zq zk zv", "out", axis=1)], {"weight": noise(6, 2, 1, 1), **NORM}, [2, 6, 4, 4]
    )
    images = noise(2, 6, 4, 4)
    wanted = run(graph, images)
    assert RULE.apply_to_model(graph) == 3
    assert kinds(graph)["BatchNormalization"] == 0
    assert relative_error(run(graph, images), wanted) <= 1e-6
    folded = {each.inputs[1].const_value.numpy().tobytes() for each in graph.graph if each.op_type == "Conv"}
    assert len(folded) == 1, "equal weights, so that the deduplication makes them one"


def test_a_weight_that_is_computed_is_declined() -> None:
    nodes = [node("Mul", "weight twice", "scaled"), node("Conv", "x scaled", "y"), NORM_NODE]
    graph = graph_of(nodes, {"weight": noise(6, 4, 3, 3), "twice": np.float32(2), **NORM}, [2, 4, 7, 5])
    assert refusal(RULE, graph) == "the convolution's weights are not constant"


def test_a_norm_that_is_computed_is_declined_by_name() -> None:
    nodes = [node("Conv", "x weight", "y"), node("Mul", "mean twice", "moved")]
    nodes.append(node("BatchNormalization", "y gain shift moved variance", "out"))
    graph = graph_of(nodes, {"weight": noise(6, 4, 3, 3), "twice": np.float32(2), **NORM}, [2, 4, 7, 5])
    assert refusal(RULE, graph) == "the BatchNormalization's mean is not constant"


def test_a_convolution_that_something_else_reads_is_left_alone() -> None:
    nodes = [node("Conv", "x weight", "y"), NORM_NODE, node("Relu", "y", "other")]
    graph = graph_of(nodes, {"weight": noise(6, 4, 3, 3), **NORM}, [2, 4, 7, 5], outputs=("out", "other"))
    refusal(RULE, graph)


def test_a_norm_after_something_else_is_left_alone() -> None:
    nodes = [node("Conv", "x weight", "z"), node("Relu", "z", "y"), NORM_NODE]
    assert refusal(RULE, graph_of(nodes, {"weight": noise(6, 4, 3, 3), **NORM}, [2, 4, 7, 5])) == ""


def test_the_affine_form_is_batchnorms_definition_in_float64() -> None:
    x = noise(50, 6, seed=7).astype(np.float64)
    gain, shift, mean, variance = NORM.values()
    scale, offset = batchnorm_affine(gain, shift, mean, variance, 1e-3)
    assert scale.dtype == offset.dtype == np.float64
    wanted = (x - mean) / np.sqrt(variance.astype(np.float64) + 1e-3) * gain + shift
    assert np.allclose(scale * x + offset, wanted, rtol=1e-12, atol=1e-12)
