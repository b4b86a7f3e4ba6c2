"""BatchNorm, mean and classifier become pooling and one Gemm; other means and other classifiers are declined."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxscript")

import onnx_ir
from graph_tools import graph_of, kinds, node, noise, refusal, relative_error, run

from gmf_edge.rewrite.head import RULE

CONSTANTS = {
    "gain": noise(8, seed=1),
    "shift": noise(8, seed=2),
    "mean": noise(8, seed=3),
    "variance": np.abs(noise(8, seed=4)) + 0.1,
    "weight": noise(5, 8, seed=5),
    "bias": noise(5, seed=6),
}


def head_graph(
    axes: tuple[int, ...] = (2, 3), keepdims: int = 0, gemm: dict[str, Any] | None = None, **constants: Any
) -> onnx_ir.Model:
    nodes = [
        node("BatchNormalization", "x gain shift mean variance", "normed"),
        node("ReduceMean", "normed axes", "pooled", keepdims=keepdims),
    ]
    flat = "pooled"
    if keepdims:
        nodes.append(node("Flatten", "pooled", "flat"))
        flat = "flat"
    nodes.append(node("Gemm", f"{flat} weight bias", "out", **{"transB": 1, **(gemm or {})}))
    return graph_of(nodes, {**CONSTANTS, "axes": np.array(axes, np.int64), **constants}, ["batch", 8, 3, 2])


@pytest.mark.parametrize("axes", [(2, 3), (3, 2), (-1, -2), (-2, 3)])
def test_it_fires_with_equal_numbers_and_without_reduce_mean(axes: tuple[int, ...]) -> None:
    graph = head_graph(axes)
    images = noise(3, 8, 3, 2, seed=7)
    wanted = run(graph, images)
    assert RULE.apply_to_model(graph) == 1
    assert kinds(graph) == {"GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    assert relative_error(run(graph, images), wanted) <= 1e-6


@pytest.mark.parametrize("axes", [(1, 2), (2,), (1, 2, 3)])
def test_a_mean_over_other_axes_is_declined(axes: tuple[int, ...]) -> None:
    # the sizes do not fit the classifier: only the rule looks at them
    assert refusal(RULE, head_graph(axes)) == "the mean is not over H and W"


@pytest.mark.parametrize("factor", ["alpha", "beta"])
def test_a_classifier_with_a_factor_is_declined(factor: str) -> None:
    assert refusal(RULE, head_graph(gemm={factor: 0.5})) == "the classifier scales its product or its bias"


def test_a_mean_that_keeps_its_axes_is_declined() -> None:
    graph = head_graph()
    next(each for each in graph.graph if each.op_type == "ReduceMean").attributes["keepdims"] = onnx_ir.AttrInt64("keepdims", 1)
    assert refusal(RULE, graph) == "the mean keeps its axes"


def test_a_weight_that_is_computed_is_declined_by_name() -> None:
    nodes = [
        node("BatchNormalization", "x gain shift mean variance", "normed"),
        node("ReduceMean", "normed axes", "pooled", keepdims=0),
        node("Mul", "weight twice", "scaled"),
        node("Gemm", "pooled scaled bias", "out", transB=1),
    ]
    constants = {**CONSTANTS, "axes": np.array([2, 3], np.int64), "twice": np.float32(2)}
    assert refusal(RULE, graph_of(nodes, constants, [1, 8, 3, 2])) == "weight is not constant"


def test_a_classifier_with_untransposed_weights_is_left_alone() -> None:
    graph = head_graph(gemm={"transB": 0}, weight=noise(8, 5))
    assert refusal(RULE, graph) == ""
