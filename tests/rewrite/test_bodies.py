"""The two forms of a fused graph: bodies inlined give the same bits, bodies dropped leave what a plugin needs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from graph_tools import kinds, noise, run

from gmf_edge.errors import RewriteError
from gmf_edge.ops.group_mix_attention import ATTRIBUTE_NAMES, INPUT_NAMES, OP_TYPE
from gmf_edge.precision.fp16 import to_fp16
from gmf_edge.rewrite.bodies import drop_bodies, inline_bodies

IMAGES = noise(3, 3, 96, 64, seed=11)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_inlined_equals_fused_bit_for_bit(fused: onnx_ir.Model, precision: str) -> None:
    if precision == "fp16":
        to_fp16(fused)
    assert np.array_equal(run(inline_bodies(fused), IMAGES), run(fused, IMAGES))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_portable_form_has_standard_ops_and_no_shape_arithmetic(fused: onnx_ir.Model, precision: str) -> None:
    if precision == "fp16":
        to_fp16(fused)
    portable = inline_bodies(fused)
    found = kinds(portable)
    assert len(portable.functions) == 0
    assert {each.domain for each in portable.graph} == {""}
    assert [op for op in ("CastLike", "Constant", "Shape", "Gather", "Unsqueeze", "ConstantOfShape", "Identity") if found[op]] == []
    # the weights of q, k and v are stacked once, not at every inference: what is left joins activations
    constants = {str(name) for name in portable.graph.initializers}
    joins = [each for each in portable.graph if each.op_type == "Concat"]
    assert [each.name for each in joins if all(value is not None and value.name in constants for value in each.inputs)] == []
    assert found["Cast"] == 0 if precision == "fp32" else found["Cast"] > 0


def test_inlining_leaves_the_fused_graph_as_it_was(fused: onnx_ir.Model) -> None:
    before = kinds(fused)
    inline_bodies(fused)
    drop_bodies(fused)
    assert kinds(fused) == before
    assert len(fused.functions) == 1
    assert not any("plugin_version" in each.attributes for each in fused.graph)


def test_inlined_nodes_are_named_after_their_attention(fused: onnx_ir.Model) -> None:
    portable = inline_bodies(fused)
    softmaxes = [str(each.name) for each in portable.graph if each.op_type == "Softmax"]
    wanted = [
        f"groupmixformer_backbone.{stage}.gma_stage.{block}.att/" for stage, block in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))
    ]
    assert [name[: len(start)] for name, start in zip(softmaxes, wanted, strict=True)] == wanted
    assert max(Counter(str(each.name) for each in portable.graph).values()) == 1


def test_the_plugin_form_has_the_plugins_attributes_and_no_functions(fused: onnx_ir.Model) -> None:
    plugin = drop_bodies(fused)
    assert len(plugin.functions) == 0
    nodes = [each for each in plugin.graph if each.op_type == OP_TYPE]
    assert len(nodes) == 5
    for each in nodes:
        assert set(each.attributes) == {*ATTRIBUTE_NAMES, "plugin_version", "plugin_namespace"}
        assert (each.attributes["plugin_version"].value, each.attributes["plugin_namespace"].value) == ("1", "")
        assert len(each.inputs) == len(INPUT_NAMES)
        assert all(value is not None and value.is_initializer() for value in each.inputs[1:])


def test_the_bundles_plugin_graphs_are_of_that_form(odd_pico: Any) -> None:
    for name in ("plugin.onnx", "plugin-opset17.onnx"):
        graph = onnx.load(odd_pico.bundle / name, load_external_data=False)
        assert len(graph.functions) == 0
        nodes = [each for each in graph.graph.node if each.op_type == OP_TYPE]
        assert len(nodes) == 5
        assert all({"plugin_version", "plugin_namespace"} <= {attribute.name for attribute in each.attribute} for each in nodes)


def test_a_cast_like_of_an_unknown_type_is_refused(tmp_path: Path, fused: onnx_ir.Model) -> None:
    from gmf_edge.rewrite.bodies import _resolve_cast_like

    value = onnx_ir.Value(name="unknown")
    cast = onnx_ir.node("CastLike", [fused.graph.inputs[0], value], name="cast")
    fused.graph.append(cast)
    with pytest.raises(RewriteError, match="type of unknown is not known"):
        _resolve_cast_like(fused)
