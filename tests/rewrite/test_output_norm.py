"""A BatchNorm at the end becomes a product and a sum of the same numbers; one that a convolution can take in is left to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import pytest
from graph_tools import graph_of, kinds, node, noise, refusal, relative_error, run

from gmf_edge.rewrite.output_norm import RULE

CONSTANTS: dict[str, Any] = {
    "gain": np.array([0.5, 2.0], np.float32),
    "shift": np.array([1.0, -3.0], np.float32),
    "mean": np.array([4.0, 0.0], np.float32),
    # beyond what FP16 holds
    "variance": np.array([1e6, 0.25], np.float32),
    "w": np.ones((2, 2, 1, 1), np.float32),
}
NORM = "gain shift mean variance"


def graph(*nodes: Any) -> onnx_ir.Model:
    used = {name for each in nodes for name in each.input}
    return graph_of(nodes, {name: value for name, value in CONSTANTS.items() if name in used}, ["batch", 2, 3, 5])


def test_it_is_the_same_function_without_statistics() -> None:
    before = graph(node("Add", "x x", "sum"), node("BatchNormalization", f"sum {NORM}", "out", epsilon=1e-3))
    wanted = run(before, noise(2, 2, 3, 5))
    assert RULE.apply_to_model(before) == 1
    assert kinds(before) == {"Add": 2, "Mul": 1}
    assert [value.name for value in before.graph.outputs] == ["out"]
    assert relative_error(run(before, noise(2, 2, 3, 5)), wanted) <= 1e-6


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ((node("Conv", "x w", "y"), node("BatchNormalization", f"y {NORM}", "out")), "a convolution can take it in"),
        ((node("BatchNormalization", f"x {NORM}", "y"), node("Add", "y y", "out")), "it is no output's"),
    ],
)
def test_other_norms_are_left_alone(nodes: Any, words: str) -> None:
    assert words in refusal(RULE, graph(*nodes))
