"""The proof of precision: it cannot be fooled, and what a version does not tell neither passes nor fails."""

from __future__ import annotations

import json
from typing import Any

import pytest
from inspector_answers import engine_answer, layer, quantised_nodes, tactic_of

from gmf_edge.engines.tensorrt.inspect import LayerTimes, read_inspector_json
from gmf_edge.engines.tensorrt.proof import PROVED, REFUTED, UNKNOWN, PrecisionProof, precision_shares, prove_precision
from gmf_edge.spec import Precision

VERSIONS = ("8.6.1", "10.3.0", "10.13.3", "11.1.0")
every_schema = pytest.mark.parametrize("version", VERSIONS)
NODES = quantised_nodes(2)


def proof_of(
    answer: dict[str, Any], requested: Precision, times: LayerTimes = (), share: float = 0.5, nodes: Any = NODES
) -> PrecisionProof:
    inspected = read_inspector_json(json.dumps(answer))
    return prove_precision(inspected, requested, share, times, nodes if requested is Precision.INT8 else ())


def timed(answer: dict[str, Any], ms: Any) -> list[tuple[str, float]]:
    return [(told["Name"], ms(told)) for told in answer["Layers"]]


@every_schema
@pytest.mark.parametrize("nodes", [NODES, ()], ids=["named", "not named"])
def test_fp16_products_between_q_and_dq_kernels_are_no_int8(version: str, nodes: tuple[str, ...]) -> None:
    proof = proof_of(engine_answer(version, "fp16", with_qdq=True), Precision.INT8, nodes=nodes)
    assert proof.verdict == REFUTED
    assert "int8 was asked for, but" in proof.reason
    assert set(proof.not_in_int8) == set(nodes)


@every_schema
@pytest.mark.parametrize("products", [Precision.FP32, Precision.FP16, Precision.INT8])
def test_what_runs_is_proved(version: str, products: Precision) -> None:
    proof = proof_of(engine_answer(version, products.value, with_qdq=products is Precision.INT8), products)
    assert (proof.verdict, proof.not_in_int8, proof.untold) == (PROVED, (), ())
    if products is Precision.INT8:
        assert proof.in_int8 == NODES
        assert proof.reason == "6 of 6 quantised layers run in INT8"


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_bf16_is_proved_by_bf16_and_refuted_by_fp16_and_fp32(version: str) -> None:
    proof = proof_of(engine_answer(version, "bf16"), Precision.BF16)
    assert (proof.verdict, set(proof.shares)) == (PROVED, {"bf16", "fp32"})
    assert "of the work runs in bf16" in proof.reason
    for products in ("fp16", "fp32"):
        refused = proof_of(engine_answer(version, products), Precision.BF16)
        assert refused.verdict == REFUTED
        assert "no layer of the engine runs in bf16" in refused.reason
    mixed = proof_of(engine_answer(version, "bf16", stem="fp16"), Precision.BF16)
    assert mixed.verdict == REFUTED
    assert "1 layers run in fp16: stem/Conv" in mixed.reason
    assert proof_of(engine_answer(version, "bf16"), Precision.FP16).verdict == REFUTED


@every_schema
def test_layers_that_do_not_run_in_int8_are_named(version: str) -> None:
    answer = engine_answer(version, "int8", with_qdq=True)
    other = engine_answer(version, "fp16", with_qdq=True)

    def products_of(layers: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        return dict(enumerate(told for told in layers if "mlp.fc2/MatMul]" in told["Metadata"]))

    replacements = products_of(other["Layers"])
    for number, told in products_of(answer["Layers"]).items():
        told.clear()
        told.update(replacements[number])
    proof = proof_of(answer, Precision.INT8)
    assert proof.verdict == PROVED
    assert set(proof.not_in_int8) == {"stage.0.mlp.fc2/MatMul", "stage.1.mlp.fc2/MatMul"}
    assert any("4 of 6 quantised layers run in INT8; not stage.0.mlp.fc2/MatMul" in note for note in proof.notes)


def test_int8_inside_myelin_of_8_6_is_neither_proved_nor_refused() -> None:
    proof = proof_of(engine_answer("8.6.1", "int8", myelin=True), Precision.INT8)
    assert (proof.verdict, proof.untold) == (UNKNOWN, NODES)
    assert "this TensorRT does not tell" in proof.reason
    assert any(note.startswith("precision unknown: 0 of 6") for note in proof.notes)


def test_regions_of_fp32_tensors_leave_fp16_untold() -> None:
    answer = engine_answer("8.6.1", "fp32", myelin=True)
    answer["Layers"] = [told for told in answer["Layers"] if told["LayerType"] != "CaskConvolution"]
    proof = proof_of(answer, Precision.FP16)
    assert proof.verdict == UNKNOWN
    assert proof.shares == {"unknown": 1.0}


def test_what_is_told_refuses_even_beside_what_is_not() -> None:
    answer = engine_answer("8.6.1", "fp32", myelin=True, blocks=1)
    answer["Layers"] += [layer("8.6.1", f"conv {n}", "CaskConvolution", ["fp32"], ["fp32"]) for n in range(8)]
    assert proof_of(answer, Precision.FP16).verdict == REFUTED


@every_schema
def test_an_ignored_request_is_refused_even_where_any_share_is_accepted(version: str) -> None:
    proof = proof_of(engine_answer(version, "fp32"), Precision.FP16, share=1.0)
    assert proof.verdict == REFUTED
    assert "no layer of the engine runs in fp16" in proof.reason


@every_schema
def test_too_much_fp32_is_refused_with_the_layers_slowest_first(version: str) -> None:
    answer = engine_answer(version, "fp16")
    times = timed(answer, lambda told: 8.0 if "softmax" in told["Metadata"] else 1.0)
    proof = proof_of(answer, Precision.FP16, times)
    assert proof.verdict == REFUTED
    assert "70% of the work stayed in FP32 (at most 50% is accepted)" in proof.reason
    first = proof.reason.split("accepted): ")[1]
    assert first.startswith(("stage.0.att/softmax", "__myl_MaxSubExpSumDiv"))


@every_schema
def test_fp32_is_refuted_by_a_product_that_runs_lower(version: str) -> None:
    proof = proof_of(engine_answer(version, "fp32", stem="fp16"), Precision.FP32)
    assert proof.verdict == REFUTED
    assert "1 layers run lower: stem/Conv" in proof.reason


@every_schema
def test_fp32_with_fp16_images_and_logits_is_proved(version: str) -> None:
    """The casts at the edges may be kernels of their own."""
    answer = engine_answer(version, "fp32")
    answer["Layers"].insert(0, layer(version, "__myl_Cast_myl0_0", "kgen", ["fp16"], ["fp32"], names=("images", "x")))
    answer["Layers"].append(layer(version, "__myl_Cast_myl0_99", "kgen", ["fp32"], ["fp16"], names=("y", "logits")))
    assert proof_of(answer, Precision.FP32).verdict == PROVED
    answer["Layers"].append(layer(version, "__myl_Add_myl0_98", "kgen", ["fp16"], ["fp16"], names=("y", "z")))
    assert proof_of(answer, Precision.FP32).verdict == REFUTED


def shares_of(times: LayerTimes, *precisions: tuple[str, str]) -> tuple[dict[str, float], str]:
    told = [layer("10.3.0", name, "gemm", [precision], [precision]) for name, precision in precisions]
    return precision_shares(read_inspector_json(json.dumps({"Layers": told})).layers, times)


def test_shares_of_repeated_names_sum_to_one() -> None:
    layers = (("a", "fp16"), ("a", "fp32"), ("b", "fp16"))
    assert shares_of([("a", 1.0), ("a", 8.0), ("b", 1.0)], *layers) == (pytest.approx({"fp32": 0.8, "fp16": 0.2}), "time")


def test_a_layer_that_was_elided_costs_nothing_and_the_rest_goes_by_time() -> None:
    layers = (("a", "fp16"), ("b", "fp32"), *((f"c{n}", "fp16") for n in range(20)))
    times = [("a", 0.1), ("b", 9.9), *((f"c{n}", 0.0) for n in range(19))]
    shares, basis = shares_of(times, *layers)
    assert basis == "time"
    assert shares == pytest.approx({"fp32": 0.99, "fp16": 0.01})


def test_too_few_times_are_no_basis_and_that_is_said() -> None:
    layers = (("a", "fp16"), ("b", "fp16"), ("c", "fp32"))
    shares, basis = shares_of([("a", 1.0)], *layers)
    assert (shares, basis) == (pytest.approx({"fp16": 2 / 3, "fp32": 1 / 3}), "layers")
    assert any("by number of layers" in note for note in PrecisionProof(PROVED, "", shares, basis).notes)


def test_types_that_are_not_told_prove_and_refute_nothing() -> None:
    answer = {
        "Layers": [{"Name": "c", "LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "N/A due to dynamic shapes"}]}]
    }
    for requested in Precision:
        assert proof_of(answer, requested).verdict == UNKNOWN


def test_int8_weights_alone_prove_nothing() -> None:
    """A product that reads FP16 activations and INT8 weights may dequantise them first; nobody is told."""
    answer = {"Layers": [layer("10.3.0", node, "gemm", ["fp16", "int8"], ["fp16"], [node]) for node in NODES]}
    proof = proof_of(answer, Precision.INT8)
    assert (proof.verdict, proof.in_int8, proof.untold) == (UNKNOWN, (), NODES)


def test_the_layers_of_a_recorded_engine_are_judged_as_they_ran() -> None:
    """A gemm in INT8, and one whose Q and DQ were folded and which ran in TF32: i-vit-srtp's, see inspector_answers."""
    first = layer(
        "10.13.3", "/fc1/Gemm_myl0_2", "gemm", ["int8"], ["int8"], ["/fc1/Gemm", "/fc1/DequantizeLinear"], tactic_of("int8")
    )
    second = layer(
        "10.13.3", "/fc2/Gemm_myl0_4", "gemm", ["fp32"], ["fp32"], ["/fc2/Gemm", "/fc2/DequantizeLinear"], tactic_of("fp32")
    )
    quantises = layer("10.13.3", "__myl_MulMinMaxRounCast_myl0_1", "kgen", ["fp32"], ["int8"], ["/qact_input/QuantizeLinear"])
    proof = proof_of({"Layers": [quantises, first, second]}, Precision.INT8, share=1.0, nodes=("/fc1/Gemm", "/fc2/Gemm"))
    assert (proof.in_int8, proof.not_in_int8, proof.untold) == (("/fc1/Gemm",), ("/fc2/Gemm",), ())


def test_a_kernels_name_beats_its_inputs() -> None:
    """A product that reads INT8 and dequantises it on the way in multiplies in FP16."""
    answer = {"Layers": [layer("10.13.3", node, "gemm", ["int8"], ["fp16"], [node], tactic_of("fp16")) for node in NODES]}
    assert proof_of(answer, Precision.INT8).verdict == REFUTED
