"""The opset 17 form: a valid graph of opset 17 with opset 20's logits, or a refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from graph_tools import graph_of, kinds, node, noise, relative_error, run

from gmf_edge.errors import RewriteError
from gmf_edge.rewrite.bodies import drop_bodies, inline_bodies
from gmf_edge.rewrite.opset import for_target
from gmf_edge.spec import TARGETS, Target

OLD, NEW = TARGETS["tensorrt-8.6"], TARGETS["onnxruntime"]
IMAGES = noise(2, 3, 96, 64, seed=3)


@pytest.mark.parametrize(("name", "opset", "ir_version"), [("portable.onnx", 20, 9), ("portable-opset17.onnx", 17, 8)])
def test_the_bundles_graphs_pass_onnxs_full_check_at_their_opset(odd_pico: Any, name: str, opset: int, ir_version: int) -> None:
    path = odd_pico.bundle / name
    onnx.checker.check_model(str(path), full_check=True)
    graph = onnx.load(path, load_external_data=False)
    assert [(each.domain, each.version) for each in graph.opset_import] == [("", opset)]
    assert graph.ir_version == ir_version


def test_opset_17_has_opset_20s_logits_in_fp32(fused: onnx_ir.Model) -> None:
    portable = inline_bodies(fused)
    old, new = for_target(portable, OLD), for_target(portable, NEW)
    assert old.opset_imports[""] == 17
    assert kinds(old)["Gelu"] == 0
    assert kinds(new)["Gelu"] == 5
    assert relative_error(run(old, IMAGES), run(new, IMAGES)) <= 1e-6


def test_opset_17_has_opset_20s_logits_in_the_fp16_bundle(odd_pico: Any) -> None:
    old, new = (run(onnx_ir.load(odd_pico.bundle / name), IMAGES) for name in ("portable-opset17.onnx", "portable.onnx"))
    # the same function with GELU in five FP16 steps instead of one: measured 6e-4
    assert relative_error(old, new) <= 2e-3


def test_the_plugin_form_goes_to_opset_17_too(fused: onnx_ir.Model) -> None:
    old = for_target(drop_bodies(fused), OLD)
    assert old.opset_imports[""] == 17
    assert kinds(old)["GmfGroupMixAttention"] == 5


def test_the_graph_given_is_left_as_it_was(fused: onnx_ir.Model) -> None:
    portable = inline_bodies(fused)
    for_target(portable, OLD)
    assert portable.opset_imports[""] == 20
    assert kinds(portable)["Gelu"] == 5


def test_an_op_that_is_not_known_to_be_the_same_is_refused_by_name() -> None:
    graph = graph_of([node("ReduceMean", "x axes", "out")], {"axes": np.array([1], np.int64)}, [2, 3])
    with pytest.raises(RewriteError, match=r"layer/out: .*ReduceMean is the same at opset 17"):
        for_target(graph, OLD)


def test_an_opset_that_nobody_asked_for_is_refused() -> None:
    graph = graph_of([node("Relu", "x", "out")], {}, [2, 3])
    with pytest.raises(RewriteError, match="no way from opset 20 to 15"):
        for_target(graph, Target("old", 15, 8, "weak", ""))


def test_gelu_is_its_definition_when_it_ends_the_graph() -> None:
    graph = graph_of([node("Gelu", "x", "out")], {}, [2, 300])
    x = 4 * noise(2, 300)
    old = for_target(graph, OLD)
    assert [value.name for value in old.graph.outputs] == ["out"]
    assert kinds(old) == {"Div": 1, "Erf": 1, "Add": 1, "Mul": 2}
    from math import erf

    wanted = np.vectorize(lambda value: value / 2 * (1 + erf(value / 2**0.5)))(x.astype(np.float64))
    assert np.abs(run(old, x) - wanted).max() <= 1e-6 * np.abs(wanted).max()


def test_an_equal_split_keeps_its_parts_and_an_unequal_one_its_sizes() -> None:
    nodes = [
        node("Split", "x", "a b", axis=1, num_outputs=2),
        node("Split", "a sizes", "c d", axis=1),
        node("Concat", "d c b", "out", axis=1),
    ]
    graph = graph_of(nodes, {"sizes": np.array([1, 2], np.int64)}, [2, 6])
    x = noise(2, 6)
    assert np.array_equal(run(for_target(graph, OLD), x), run(graph, x))
