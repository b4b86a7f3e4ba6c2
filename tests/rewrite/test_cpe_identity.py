"""x + depthwise(x) becomes one depthwise convolution, where that is exactly the same; every other case is declined with its reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxscript")

import onnx_ir
from graph_tools import graph_of, kinds, node, noise, refusal, relative_error, run

from gmf_edge.rewrite.cpe_identity import RULE


def cpe_graph(window: tuple[int, int] = (3, 3), per_group: int = 1, swapped: bool = False, **attributes: Any) -> onnx_ir.Model:
    values: dict[str, Any] = {"group": 4 // per_group, "pads": [window[0] // 2, window[1] // 2] * 2, **attributes}
    constants = {"weight": noise(4, per_group, *window), "bias": noise(4, seed=1)}
    nodes = [node("Conv", "x weight bias", "y", **values), node("Add", "x y" if swapped else "y x", "out")]
    return graph_of(nodes, constants, ["batch", 4, 6, 5])


@pytest.mark.parametrize("window", [(1, 1), (3, 3), (5, 3), (7, 7)])
def test_it_fires_on_any_odd_window_with_equal_numbers(window: tuple[int, int]) -> None:
    graph = cpe_graph(window)
    images = noise(3, 4, 6, 5, seed=2)
    wanted = run(graph, images)
    assert RULE.apply_to_model(graph) == 1
    assert kinds(graph) == {"Conv": 1}
    assert relative_error(run(graph, images), wanted) <= 1e-6


def test_the_weight_itself_is_not_changed() -> None:
    graph = cpe_graph()
    weight = graph.graph.initializers["weight"].const_value
    assert weight is not None
    before = weight.numpy().copy()
    RULE.apply_to_model(graph)
    assert np.array_equal(weight.numpy(), before)


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (lambda: cpe_graph(per_group=4), "the convolution is not depthwise"),
        (lambda: cpe_graph(per_group=2), "the convolution is not depthwise"),
        (lambda: cpe_graph((4, 3), pads=[2, 1, 1, 1]), "the window has no centre tap"),
        (lambda: cpe_graph(pads=[0, 1, 2, 1]), "the convolution is not centred"),
        (lambda: cpe_graph(dilations=[2, 1], pads=[1, 1, 1, 1]), "the convolution is strided or dilated"),
    ],
)
def test_it_declines_with_the_reason(graph: Any, reason: str) -> None:
    made = graph()
    # sides that do not fit are never run: only the rule looks at them
    assert refusal(RULE, made) == reason


def test_a_weight_that_is_computed_is_declined() -> None:
    nodes = [
        node("Mul", "weight twice", "scaled"),
        node("Conv", "x scaled bias", "y", group=4, pads=[1] * 4),
        node("Add", "y x", "out"),
    ]
    constants = {"weight": noise(4, 1, 3, 3), "bias": noise(4), "twice": np.float32(2)}
    assert refusal(RULE, graph_of(nodes, constants, [1, 4, 6, 5])) == "the convolution's weight is not constant"


def test_an_identity_of_another_tensor_is_left_alone() -> None:
    nodes = [node("Conv", "x weight bias", "y", group=4, pads=[1] * 4), node("Relu", "x", "z"), node("Add", "y z", "out")]
    assert refusal(RULE, graph_of(nodes, {"weight": noise(4, 1, 3, 3), "bias": noise(4)}, [1, 4, 6, 5])) == ""
