"""The engine inspector's answers of every version are read alike: layers, what they compute in, their ONNX nodes and their times."""

from __future__ import annotations

import json

import pytest
from inspector_answers import engine_answer, layer, quantised_nodes, tactic_of

from gmf_edge.engines.tensorrt.inspect import (
    EngineLayer,
    layer_records,
    precision_of_tactic,
    precision_of_type,
    read_inspector_json,
    times_of_layers,
)
from gmf_edge.errors import EngineError

VERSIONS = ("8.6.1", "10.3.0", "10.13.3", "11.1.0")
every_schema = pytest.mark.parametrize("version", VERSIONS)


def read(version: str, *layers: dict[str, object]) -> tuple[EngineLayer, ...]:
    return read_inspector_json(json.dumps({"Layers": list(layers), "Bindings": ["images", "logits"]})).layers


@every_schema
@pytest.mark.parametrize("products", ["fp32", "fp16", "int8"])
def test_products_are_found_with_what_they_multiply(version: str, products: str) -> None:
    engine = read_inspector_json(json.dumps(engine_answer(version, products, with_qdq=True)))
    assert engine.io_names == ("images", "logits")
    found = {node: [found for found in engine.layers if found.is_product and found.covers(node)] for node in quantised_nodes(2)}
    assert all(len(layers) == 1 for layers in found.values()), found
    assert {layers[0].precision for layers in found.values()} == {products}
    [stem] = [found for found in engine.layers if found.name.startswith("stem/Conv")]
    assert (stem.is_product, stem.kind, stem.nodes) == (True, "CaskConvolution", ("stem/Conv", "stem/HardSwish"))


@every_schema
def test_q_and_dq_are_no_int8_arithmetic(version: str) -> None:
    engine = read_inspector_json(json.dumps(engine_answer(version, "fp16", with_qdq=True)))
    assert not any(found.precision == "int8" and not found.moves_data for found in engine.layers)


def test_a_myelin_region_of_8_6_tells_its_outside_only() -> None:
    half, single = (
        read_inspector_json(json.dumps(engine_answer("8.6.1", products, myelin=True))).layers[2] for products in ("fp16", "fp32")
    )
    assert (half.is_opaque, half.is_product, half.precision) == (True, False, "fp16")
    assert (single.is_opaque, single.precision) == (True, "unknown")


@every_schema
def test_weights_say_more_than_inputs_and_a_kernels_name_more_than_weights(version: str) -> None:
    typed = {"Type": "Half", "Count": 3}
    weighted, named, newer = read(
        version,
        layer(version, "c", "CaskConvolution", ["fp32"], ["fp32"], Weights=typed),
        layer(version, "d", "CaskConvolution", ["fp32"], ["fp32"], tactic=tactic_of("int8"), Weights=typed),
        layer(version, "e", "CaskConvolution", ["fp32"], ["fp32"], Weights={"Datatype": "Half", "Count": 3}),
    )
    assert [found.precision for found in (weighted, named, newer)] == ["fp16", "int8", "fp16"]


@pytest.mark.parametrize(
    ("tactic", "precision"),
    [
        ("sm80_xmma_gemm_f16f16_f16f16_f16_nn_n_tilesize32x32x64_stage6_warpsize2x2x1_tensor16x8x16_by_fusion_tactic", "fp16"),
        ("sm80_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize64x64x64", "int8"),
        ("sm80_xmma_gemm_i8f32_i8i32_f32_tn_n_tilesize128x128x64_stage3_warpsize2x2x1_tensor16x8x32_fused", "int8"),
        ("sm86_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize32x32x64_stage6_warpsize2x2x1_tensor16x8x8", "fp32"),
        ("ampere_fp32_icudnn_int8x4_128x64_relu_medium_nn_v1", "int8"),
        ("__myl_MulMinMaxRounCast_0x70d167656fad6d662e55dc2930c5d5a5", None),
        ("sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_nchw_vect_c_32", "int8"),
        ("sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize32x32x8", "fp32"),
        ("sm89_xmma_gemm_e4m3e4m3_e4m3f32_f32_tn", "fp8"),
        ("sm80_xmma_gemm_bf16bf16_bf16f32_f32_nn", "bf16"),
        ("ampere_h16816gemm_256x128_ldg8_nn_v1", "fp16"),
        ("turing_fp16_s1688cudnn_fp16_128x64_ldg8_relu_f2f_exp_medium_nhwc", "fp16"),
        ("trt_ampere_int8_i8816cudnn_int8_128x128_ldg16_relu_medium_nt_v1", "int8"),
        ("__myl_AddCastMeanSubMulMeanAddSqrtDivMulCastMulAdd_0xf2543c36ff9f104bbb1655b0183afb47", None),
        ("", None),
    ],
)
def test_kernel_names_tell_their_operands(tactic: str, precision: str | None) -> None:
    assert precision_of_tactic(tactic) == precision


def test_an_int8_operand_beside_a_floating_one_leaves_open_what_is_multiplied() -> None:
    """INT8 weights may be dequantised on the way in, and a residual may be added on the way out."""
    weights_alone, both, residual, told = read(
        "10.13.3",
        layer("10.13.3", "a", "gemm", ["fp16", "int8"], ["fp16"]),
        layer("10.13.3", "b", "gemm", ["int8", "int8"], ["fp16"]),
        layer("10.13.3", "c", "fusion", ["int8", "fp16"], ["fp16"], tactic="an_int_gemm_of_another_spelling"),
        layer("10.13.3", "d", "fusion", ["int8", "fp16"], ["fp16"], tactic="sm80_xmma_gemm_i8f32_i8i32_f32_tn_n_by_fusion_tactic"),
    )
    assert [found.precision for found in (weights_alone, both, residual, told)] == ["unknown", "int8", "unknown", "int8"]


@every_schema
def test_a_node_is_found_in_metadata_and_in_a_fused_name(version: str) -> None:
    merged, other = read(
        version,
        layer(version, "/layers_0/key/MatMul+/layers_0/query/MatMul_myl0_9", "gemm", ["fp16"], ["fp16"]),
        layer(version, "__myl_Fc_myl0_34", "fusion", ["fp16"], ["fp16"], ["/layers.0/dense/MatMul", "/layers.0/Erf"]),
    )
    assert merged.covers("/layers.0/key/MatMul")
    assert merged.covers("/layers.0/query/MatMul")
    assert not merged.covers("/layers.0/query")
    assert other.covers("/layers.0/dense/MatMul")
    assert not other.covers("/layers.0/dense")


def test_layers_of_one_name_have_a_time_each() -> None:
    layers = read("10.3.0", *(layer("10.3.0", name, "gemm", ["fp16"], ["fp16"]) for name in ("a", "b", "a", "c")))
    times = [("a", 1.0), ("b", 2.0), ("a", 3.0)]
    assert times_of_layers(layers, times) == (1.0, 2.0, 3.0, None)
    assert [record.time_ms for record in layer_records(layers, times)] == [1.0, 2.0, 3.0, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "not its JSON"),
        ("{}", "not its JSON"),
        ("[]", "not its JSON"),
        (json.dumps({"Layers": ["conv", "gemm"], "Bindings": []}), "only the names of its layers"),
    ],
)
def test_an_answer_without_details_is_refused(text: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        read_inspector_json(text)


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("Row major linear FP32", "fp32"),
        ("Float", "fp32"),
        ("Half", "fp16"),
        ("Two wide channel vectorized row major FP16 format", "fp16"),
        ("Row major linear BFloat16 format", "bf16"),
        ("BF16", "bf16"),
        ("Channel major INT8 format where channel % 16 == 0", "int8"),
        ("Int8", "int8"),
        ("FP8", "fp8"),
        ("Row major linear UInt8 format", None),
        ("Row major linear Int32", None),
        ("Int64", None),
        ("Bool", None),
        ("", None),
    ],
)
def test_spellings_of_types(text: str, precision: str | None) -> None:
    assert precision_of_type(text) == precision
