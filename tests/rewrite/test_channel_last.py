"""The form for CPU libraries computes what the fused graph computes, with tokens turned into maps in four dimensions only."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from graph_tools import graph_of, kinds, node, noise, relative_error, run, session_of
from onnx import TensorProto, helper

from gmf_edge.ops import group_mix_attention as op
from gmf_edge.ops.channel_last_body import channel_last_body
from gmf_edge.rewrite.bodies import inline_bodies
from gmf_edge.rewrite.channel_last import channel_last_form, grids_for_maps, linears_by_segment

BLOCKS = 5
IMAGES = noise(3, 3, 96, 64, seed=11)


def transposes(graph: onnx_ir.Model) -> list[int]:
    """Ranks of what is transposed."""
    return [len(each.attributes["perm"].as_ints()) for each in graph.graph if each.op_type == "Transpose"]


@pytest.mark.parametrize("optimise", [False, True])
def test_it_gives_the_fused_graphs_logits(fused: onnx_ir.Model, optimise: bool) -> None:
    assert relative_error(run(channel_last_form(fused), IMAGES, optimise), run(fused, IMAGES)) <= 1e-5


def test_tokens_become_maps_by_4d_transposes_and_linears_are_split_by_their_weights(fused: onnx_ir.Model) -> None:
    portable, found = inline_bodies(fused), kinds(form := channel_last_form(fused))
    # the heads' way back to tokens is the one transpose of a block that stands next to no convolution
    assert transposes(portable).count(3) > 4 * BLOCKS
    assert transposes(form).count(3) == BLOCKS
    # a Gemm for each of five segments, and the head; q, k, v and CRPE's windows are what is still split
    assert (found["Gemm"], found["Split"], found["MatMul"]) == (5 * BLOCKS + 1, 2 * BLOCKS, 5 * BLOCKS)
    assert kinds(portable)["Split"] == 6 * BLOCKS
    assert {each.domain for each in form.graph} == {""}
    onnx.checker.check_model(onnx_ir.to_proto(onnx_ir.external_data.load_to_model(form)), full_check=True)


def test_the_fused_graph_is_left_as_it_was(fused: onnx_ir.Model) -> None:
    before = onnx_ir.to_proto(fused).SerializeToString()
    channel_last_form(fused)
    assert onnx_ir.to_proto(fused).SerializeToString() == before


@pytest.mark.parametrize(("channels", "height", "width"), [(40, 9, 5), (80, 5, 13), (240, 1, 6)])
def test_the_body_equals_the_float64_reference_at_every_batch_size(channels: int, height: int, width: int) -> None:
    attributes = op.node_attributes(height, width, channels)
    call = helper.make_node(op.OP_TYPE, list(op.INPUT_NAMES), ["output"], domain=op.DOMAIN, **attributes)
    shapes = op.input_shapes(channels, "B", height * width)
    graph = helper.make_graph(
        [call],
        "one_node",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["B", height * width, channels])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(op.DOMAIN, op.DOMAIN_VERSION)]
    model = helper.make_model(graph, functions=[channel_last_body(20)], opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        inputs = op.random_inputs(np.random.default_rng(batch), channels, batch, height * width)
        exact = op.reference(inputs, height, width, float(attributes["scale"]), float(attributes["epsilon"]))
        assert relative_error(session.run(None, inputs)[0], exact) <= 1e-5


def linear_and_split(*more: Any) -> onnx_ir.Model:
    nodes = [node("MatMul", "x weight", "product"), node("Add", "product bias", "sum")]
    nodes += [node("Split", "sum", "left right", axis=2, num_outputs=2)]
    nodes += [node("Reshape", f"{side} grid", f"{side}_grid") for side in ("left", "right")]
    nodes += [node("Concat", "left_grid right_grid", "out", axis=0), *more]
    constants = {"weight": noise(7, 6), "bias": noise(6, seed=1), "grid": np.array([0, 2, 3, -1])}
    return graph_of(nodes, constants, ["batch", 6, 7], ("out", *("extra" for _ in more)))


def test_a_linear_whose_parts_are_reshaped_becomes_one_gemm_a_part() -> None:
    graph, tokens = linear_and_split(), noise(3, 6, 7, seed=2)
    wanted = run(graph, tokens)
    assert linears_by_segment(graph) == 1
    assert (kinds(graph)["Gemm"], kinds(graph)["MatMul"], kinds(graph)["Split"]) == (2, 0, 0)
    assert relative_error(run(graph, tokens), wanted) <= 1e-6


def test_a_linear_that_another_node_reads_stays_whole() -> None:
    graph = linear_and_split(node("Relu", "sum", "extra"))
    assert linears_by_segment(graph) == 0
    assert kinds(graph)["MatMul"] == 1


def test_a_transpose_to_maps_and_back_becomes_4d_with_equal_numbers() -> None:
    nodes = [
        node("Transpose", "x", "channels", perm=[0, 2, 1]),
        node("Reshape", "channels sides", "map"),
        node("Relu", "map", "active"),
        node("Reshape", "active flat", "joined"),
        node("Transpose", "joined", "out", perm=[0, 2, 1]),
    ]
    graph = graph_of(nodes, {"sides": np.array([0, 4, 2, 3]), "flat": np.array([0, 0, -1])}, ["batch", 6, 4])
    tokens = noise(3, 6, 4)
    wanted = run(graph, tokens)
    assert grids_for_maps(graph) == 2
    assert transposes(graph) == [4, 4]
    assert np.array_equal(run(graph, tokens), wanted)


def test_a_transpose_that_leads_to_no_map_stays() -> None:
    nodes = [node("Transpose", "x", "channels", perm=[0, 2, 1]), node("Reshape", "channels sides", "out")]
    graph = graph_of(nodes, {"sides": np.array([0, 2, 12])}, ["batch", 6, 4])
    assert grids_for_maps(graph) == 0
    assert transposes(graph) == [3]


def test_maps_that_are_outputs_keep_their_names_and_values(fused: onnx_ir.Model) -> None:
    """A backbone's: they end in the transposes that are made anew."""
    read = [each.inputs[0] for each in fused.graph if str(each.name).startswith("patch_embed_layers") and each.op_type == "Conv"]
    maps = [value for value in read if value.producer().op_type == "Reshape"]
    assert len(maps) == 3
    for index, value in enumerate(maps):
        value.name = f"stage{index + 1}"
    fused.graph.outputs.extend(maps)
    names = [str(value.name) for value in fused.graph.outputs]
    form = channel_last_form(fused)
    assert [value.name for value in form.graph.outputs] == names
    wanted, found = (session_of(each).run(names, {"images": IMAGES}) for each in (fused, form))
    for name, expected, got in zip(names, wanted, found, strict=True):
        assert relative_error(got, expected) <= 1e-5, name
