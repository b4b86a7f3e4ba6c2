"""The engine inspector's JSON of both schemas, and the proof of precision from it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gmf_edge.engines.tensorrt.backend import trtexec_files
from gmf_edge.engines.tensorrt.inspect import precision_of_type, precision_shares, prove_precision, read_inspector_json
from gmf_edge.errors import EngineError, PrecisionError
from gmf_edge.spec import Precision

# as TensorRT 8.6 and 10 write it: one text for layout and type
BEFORE_11 = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to /stem/conv",
            "LayerType": "Reformat",
            "Inputs": [
                {"Name": "images", "Location": "Device", "Dimensions": [1, 3, 64, 64], "Format/Datatype": "Row major linear FP32"}
            ],
            "Outputs": [{"Name": "r", "Format/Datatype": "Channel major FP16 format where channel % 4 == 0"}],
        },
        {
            "Name": "/stem/conv + /stem/hswish",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "r", "Format/Datatype": "Channel major FP16 format where channel % 4 == 0"}],
            "Outputs": [{"Name": "s", "Format/Datatype": "Row major linear FP32"}],
            "Weights": {"Type": "Half", "Count": 1080},
            "Bias": {"Type": "Half", "Count": 40},
            "TacticName": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16",
        },
        {
            "Name": "/blocks/softmax",
            "LayerType": "SoftMaxV2",
            "Inputs": [{"Name": "s", "Format/Datatype": "Row major linear FP32"}],
            "Outputs": [{"Name": "t", "Format/Datatype": "Row major linear FP32"}],
        },
        {
            "Name": "/blocks/qkv",
            "LayerType": "ConvActPool",
            "Inputs": [{"Name": "t", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
            "Outputs": [{"Name": "u", "Format/Datatype": "Thirty-two wide channel vectorized row major FP16 format"}],
            "ConvWeights": {"Type": "Int8", "Count": 4800},
        },
        {
            "Name": "shape",
            "LayerType": "Scatter",
            "Inputs": [{"Name": "v", "Format/Datatype": "Row major linear Int32"}],
            "Outputs": [{"Name": "w", "Format/Datatype": "Row major linear BOOL"}],
        },
    ],
    "Bindings": ["images", "logits"],
}


def in_schema_11(told: dict[str, Any]) -> dict[str, Any]:
    """The same engine as TensorRT 11 tells it: type and layout apart, "I/O Tensors" for "Bindings"."""
    plain = {"fp16": "Half", "fp32": "Float", "int8": "Int8", None: "Int32"}

    def tensor(old: dict[str, Any]) -> dict[str, Any]:
        layout = old["Format/Datatype"]
        return {"Name": old["Name"], "Format": layout.split(" F")[0], "Datatype": plain[precision_of_type(layout)]}

    layers = [{**layer, **{k: [tensor(t) for t in layer[k]] for k in ("Inputs", "Outputs")}} for layer in told["Layers"]]
    io = [{"Name": name, "IOMode": mode, "DataType": "Float"} for name, mode in (("images", "Input"), ("logits", "Output"))]
    return {"Layers": layers, "I/O Tensors": io}


SCHEMAS = {"before 11": BEFORE_11, "from 11": in_schema_11(BEFORE_11)}
both_schemas = pytest.mark.parametrize("told", SCHEMAS.values(), ids=SCHEMAS)


@both_schemas
def test_layers_are_read(told: dict[str, Any]) -> None:
    engine = read_inspector_json(json.dumps(told))
    assert engine.io_names == ("images", "logits")
    assert [layer.precision for layer in engine.layers] == ["fp32", "fp16", "fp32", "int8", "none"]
    assert [layer.moves_data for layer in engine.layers] == [True, False, False, False, False]
    conv = engine.layers[1]
    assert (conv.weight_count, conv.inputs, conv.outputs) == (1080, ("fp16",), ("fp32",))
    assert conv.tactic.startswith("sm80_xmma")
    assert engine.layers[3].weight_count == 4800


@both_schemas
def test_shares_count_layers_without_times_and_time_with_them(told: dict[str, Any]) -> None:
    layers = read_inspector_json(json.dumps(told)).layers
    assert precision_shares(layers, {}) == pytest.approx({"fp16": 1 / 3, "fp32": 1 / 3, "int8": 1 / 3})
    times = {"/stem/conv + /stem/hswish": 6.0, "/blocks/softmax": 1.0, "/blocks/qkv": 3.0}
    assert precision_shares(layers, times) == pytest.approx({"fp16": 0.6, "fp32": 0.1, "int8": 0.3})
    # a layer that was not timed makes the times no basis
    del times["/blocks/qkv"]
    assert precision_shares(layers, times)["fp16"] == pytest.approx(1 / 3)


@both_schemas
def test_an_honoured_request_is_proved(told: dict[str, Any]) -> None:
    engine = read_inspector_json(json.dumps(told))
    assert prove_precision(engine, Precision.FP16, 0.4, {})["fp16"] == pytest.approx(1 / 3)
    assert prove_precision(engine, Precision.INT8, 0.4, {})["int8"] == pytest.approx(1 / 3)


@both_schemas
def test_too_much_fp32_is_refused_with_the_layers_slowest_first(told: dict[str, Any]) -> None:
    engine = read_inspector_json(json.dumps(told))
    times = {"/stem/conv + /stem/hswish": 1.0, "/blocks/softmax": 8.0, "/blocks/qkv": 1.0}
    with pytest.raises(PrecisionError, match=r"80% of the work stayed in FP32 .*: /blocks/softmax \(SoftMaxV2, fp32\)"):
        prove_precision(engine, Precision.FP16, 0.5, times)


@both_schemas
def test_fp32_is_not_proved_by_an_engine_that_runs_lower(told: dict[str, Any]) -> None:
    with pytest.raises(PrecisionError, match="FP32 was asked for, but 2 layers run lower"):
        prove_precision(read_inspector_json(json.dumps(told)), Precision.FP32, 0.5, {})


def engine_of(kind: str, *types: str) -> str:
    layers = [
        {"Name": f"layer {i}", "LayerType": kind, "Inputs": [{"Name": "a", "Format/Datatype": t}], "Outputs": []}
        for i, t in enumerate(types)
    ]
    return json.dumps({"Layers": layers, "Bindings": []})


def test_a_silently_ignored_request_is_refused_even_where_any_share_is_accepted() -> None:
    engine = read_inspector_json(engine_of("CaskGemmConvolution", "Float", "Float"))
    with pytest.raises(PrecisionError, match="no layer of the engine runs in fp16"):
        prove_precision(engine, Precision.FP16, 1.0, {})


def test_int8_without_int8_layers_is_refused() -> None:
    engine = read_inspector_json(engine_of("gemm", "Half", "Half"))
    with pytest.raises(PrecisionError, match="no layer of the engine runs in int8"):
        prove_precision(engine, Precision.INT8, 1.0, {})


def test_an_opaque_region_proves_nothing_and_fails_nothing() -> None:
    """TensorRT 8.6 tells only the outer tensors of a Myelin region."""
    opaque = read_inspector_json(engine_of("Myelin", "Row major linear FP32"))
    assert opaque.layers[0].precision == "unknown"
    with pytest.raises(PrecisionError, match="no layer of the engine runs in fp16"):
        prove_precision(opaque, Precision.FP16, 0.5, {})
    assert read_inspector_json(engine_of("Myelin", "Row major linear FP16 format")).layers[0].precision == "fp16"


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


def test_types_that_are_not_told_are_no_proof() -> None:
    engine = read_inspector_json(engine_of("CaskConvolution", "N/A due to dynamic shapes"))
    assert engine.layers[0].precision == "none"
    with pytest.raises(EngineError, match="precision of no layer"):
        prove_precision(engine, Precision.FP16, 1.0, {})


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


def test_exported_files_open_in_nvidias_viewers() -> None:
    layers, profile = trtexec_files(json.dumps(BEFORE_11), {"a": 3.0, "b": 1.0}, 10)
    assert json.loads(layers) == BEFORE_11
    head, first, second = json.loads(profile)
    assert head == {"count": 10}
    assert first == {"name": "a", "timeMs": 30.0, "averageMs": 3.0, "medianMs": 3.0, "percentage": 75.0}
    assert second["percentage"] == 25.0
