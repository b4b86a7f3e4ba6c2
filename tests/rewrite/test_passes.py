"""The whole list of passes on a model of odd sizes: every place found, equal logits, and a pass that is wrong is caught."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from graph_tools import kinds, noise, relative_error, run
from onnxscript.rewriter.pattern import RewriteRule

from gmf_edge.errors import RewriteError
from gmf_edge.rewrite import group_mix_attention, passes
from gmf_edge.rewrite.passes import PASSES, REWRITE_TOLERANCE, Pass, rewrite_onnx

BLOCKS = 5
GMF = "GmfGroupMixAttention"


def test_the_fused_graph_has_one_node_a_block_and_little_else(fused: onnx_ir.Model) -> None:
    found = kinds(fused)
    # the stem's 2, 4 embeddings of 2 and one CPE a block; qkv, proj and two of the MLP a block
    assert found["Conv"] == 2 + 4 * 2 + BLOCKS
    assert (found[GMF], found["MatMul"], found["LayerNormalization"]) == (BLOCKS, 4 * BLOCKS, 2 * BLOCKS)
    assert (found["Gelu"], found["HardSwish"]) == (BLOCKS, 6)
    assert (found["GlobalAveragePool"], found["Flatten"], found["Gemm"]) == (1, 1, 1)
    gone = (
        "BatchNormalization",
        "ReduceMean",
        "Softmax",
        "Split",
        "Concat",
        "Mul",
        "HardSigmoid",
        "Sigmoid",
        "Identity",
        "Shape",
        "Cast",
    )
    assert [op for op in gone if found[op]] == []


@pytest.mark.parametrize("batch", [1, 3])
def test_fused_equals_plain_on_new_images(plain: onnx_ir.Model, fused: onnx_ir.Model, batch: int) -> None:
    images = noise(batch, 3, 96, 64, seed=5)
    wanted = run(plain, images)
    assert wanted.std(axis=0).min() > 1e-3 or batch == 1, "logits that do not depend on the image prove nothing"
    assert relative_error(run(fused, images), wanted) <= REWRITE_TOLERANCE


def test_each_pass_says_how_often_it_fired_and_what_it_cost(odd_pico: Any) -> None:
    records = json.loads((odd_pico.bundle / "manifest.json").read_text())["rewriting"]
    assert [record["name"] for record in records] == [step.name for step in PASSES]
    fired = {record["name"]: record["fired"] for record in records}
    assert fired["fold BatchNorm into convolutions"] == 6 + 9 * BLOCKS
    assert fired["fold the identity beside CPE"] == fired["fuse group-mix attention"] == BLOCKS
    assert fired["fold BatchNorm into the head"] == 1
    assert all(0 <= record["relative_error"] <= REWRITE_TOLERANCE for record in records)
    assert any(record["relative_error"] > 0 for record in records), "nothing was measured"


def test_every_node_has_its_height_and_width(fused: onnx_ir.Model) -> None:
    attributes = [
        {name: each.attributes[name].value for name in ("height", "width", "segment_dim")}
        for each in fused.graph
        if each.op_type == GMF
    ]
    sizes = [(values["height"], values["width"], values["segment_dim"]) for values in attributes]
    # 96 x 64 pixels; stages of depth 1, 1, 2, 1 and widths 40, 40, 80, 80
    assert sizes == [(24, 16, 8), (12, 8, 8), (6, 4, 16), (6, 4, 16), (3, 2, 16)]


def test_layers_keep_the_names_of_their_modules(fused: onnx_ir.Model) -> None:
    names = {str(each.name) for each in fused.graph}
    for stage, block in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0)):
        root = f"groupmixformer_backbone.{stage}.gma_stage.{block}"
        for layer in (f"att/{GMF}", "att.qkv/MatMul", "att.proj/MatMul", "mlp.fc1/MatMul", "mlp.fc2/MatMul", "cpe.proj/Conv"):
            assert f"{root}.{layer}" in names
    assert len(names) == len(list(fused.graph)), "two nodes have one name"


def test_the_body_lies_in_the_file_and_every_value_is_typed(odd_pico: Any, fused: onnx_ir.Model) -> None:
    assert [function.name for function in fused.functions.values()] == [GMF]
    assert all(value.dtype is not None for each in fused.graph for value in each.outputs)
    onnx.checker.check_model(onnx.load(odd_pico.fused), full_check=True)


def broken(replace: Any) -> Pass:
    return Pass("broken", RewriteRule(lambda op, x: op.Gelu(x), replace, name="broken"))


@pytest.mark.parametrize(
    "replace",
    [
        lambda op, x: op.Relu(x),
        lambda op, x: op.Sqrt(op.Neg(op.Exp(x))),
        lambda op, x: op.HardSwish(x),
    ],
    ids=["another function", "NaN", "an approximation"],
)
def test_a_pass_that_changes_the_numbers_is_caught_by_name(
    odd_pico: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: Any
) -> None:
    monkeypatch.setattr(passes, "PASSES", (broken(replace),))
    with pytest.raises(RewriteError, match="the pass 'broken' changed logits by"):
        rewrite_onnx(odd_pico.plain, tmp_path / "fused.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_not_found_is_an_error_not_a_slower_graph(
    odd_pico: Any, plain: onnx_ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = next(each for each in PASSES if each.name == "fold the identity beside CPE")
    monkeypatch.setattr(passes, "PASSES", (step,))
    weight = next(each for each in plain.graph if each.name and each.name.endswith("cpe.proj/Conv"))
    weight.attributes["pads"] = onnx_ir.AttrInt64s("pads", [0, 0, 2, 2])
    onnx_ir.save(plain, tmp_path / "plain.onnx")
    with pytest.raises(RewriteError, match=r"'fold the identity beside CPE' fired 4 times, a model of 5 blocks has 5 places"):
        rewrite_onnx(tmp_path / "plain.onnx", tmp_path / "fused.onnx")


def before_fusion(plain: onnx_ir.Model) -> onnx_ir.Model:
    """The plain graph after the passes that come before the fusion."""
    import onnx_ir.passes.common as onnx_passes

    for step in PASSES[:-1]:
        step.rule.apply_to_model(plain)
        onnx_passes.DeduplicateHashedInitializersPass(size_limit=1 << 40)(plain)
        onnx_passes.RemoveUnusedNodesPass()(plain)
    return plain


def test_another_attention_is_declined_with_the_reason(plain: onnx_ir.Model) -> None:
    graph = before_fusion(plain)
    nodes = list(graph.graph)
    softmaxes = [each for each in nodes if each.op_type == "Softmax"]
    assert len(softmaxes) == BLOCKS

    # block 0: softmax over channels
    softmaxes[0].attributes["axis"] = onnx_ir.AttrInt64("axis", 2)

    def replaced(value: onnx_ir.Value, array: np.ndarray, name: str) -> onnx_ir.Value:
        tensor = onnx_ir.tensor(array, name=name)
        made = onnx_ir.Value(name=name, type=onnx_ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        graph.graph.register_initializer(made)
        return made

    # block 1: another scale
    scaling = [each for each in nodes if each.op_type == "Mul" and each.inputs[1] is not None and each.inputs[1].is_initializer()]
    assert len(scaling) == BLOCKS
    scaling[1].replace_input_with(1, replaced(scaling[1].inputs[1], np.float32(0.5), "another_scale"))

    # block 2: heads split 3, 3, 2
    splits = [each for each in nodes if each.op_type == "Split" and len(each.outputs) == 3 and len(each.inputs) == 2]
    assert len(splits) == BLOCKS
    splits[2].replace_input_with(1, replaced(splits[2].inputs[1], np.array([24, 24, 16]), "another_split"))

    # block 3: a qkv weight that is computed
    products = [each for each in nodes if each.op_type == "MatMul" and str(each.name).endswith("att.qkv/MatMul")]
    doubled = onnx_ir.node("Identity", [products[3].inputs[1]], name="computed")
    graph.graph.insert_before(products[3], doubled)
    products[3].replace_input_with(1, doubled.outputs[0])

    rule = group_mix_attention.RULE
    checked, reasons = rule._condition_function, []

    def listening(*arguments: Any, **values: Any) -> Any:
        result = checked(*arguments, **values)
        reasons.append(str(result.reason) if not result else "fires")
        return result

    try:
        rule._condition_function = listening
        assert rule.apply_to_model(graph) == 1
    finally:
        rule._condition_function = checked
    assert [reason for reason in reasons if reason == "fires"] == ["fires"]
    assert any(reason == "softmax runs over channels, not tokens" for reason in reasons)
    assert any(reason.startswith("the attention scale is") for reason in reasons)
    assert "the position encoding does not split the heads 2, 3, 3" in reasons
    assert "qkv_weight is not constant" in reasons
