"""Layers of an execution graph: names, kinds, precisions, times, by answers such as OpenVINO gives them."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from gmf_edge.engines.openvino.layers import WEIGHTED_KINDS, layer_records
from gmf_edge.engines.protocol import LayerRecord, precision_shares


@dataclass
class Any:
    """openvino.OVAny, of text."""

    text: str

    def astype(self, kind: type) -> str:
        assert kind is str
        return self.text


@dataclass
class Node:
    """A node of an execution graph."""

    name: str
    rt_info: dict[str, Any] = field(default_factory=dict)

    def get_friendly_name(self) -> str:
        return self.name

    def get_type_name(self) -> str:
        return "ExecutionNode"


class RuntimeModel:
    """What get_runtime_model gives, of (name, kind, precision, time)."""

    def __init__(self, *rows: tuple[str, str, str, str]) -> None:
        keys = ("layerType", "runtimePrecision", "execTimeMcs")
        self.nodes = [Node(name, {key: Any(text) for key, text in zip(keys, texts, strict=True)}) for name, *texts in rows]

    def get_ordered_ops(self) -> list[Node]:
        return self.nodes


def test_a_layer_has_the_precision_it_computes_in_and_its_time() -> None:
    model = RuntimeModel(
        ("images", "Input", "f32", "0"),
        ("weights", "Const", "i8", "not_executed"),
        ("qkv", "FullyConnected", "u8", "1250"),
        ("stem", "Convolution", "bf16", "300"),
        ("softmax", "Softmax", "f32", "not_executed"),
        ("shape", "ShapeOf", "i32", "1"),
    )
    assert layer_records(model) == (
        LayerRecord("qkv", "FullyConnected", "int8", 1.25),
        LayerRecord("stem", "Convolution", "bf16", 0.3),
        LayerRecord("softmax", "Softmax", "fp32", None),
        LayerRecord("shape", "ShapeOf", "other", 0.001),
    )


def test_shares_are_of_the_weighted_layers_time_or_of_their_number() -> None:
    timed = [
        LayerRecord("a", "MatMul", "int8", 1.0),
        LayerRecord("b", "Convolution", "fp32", 3.0),
        LayerRecord("c", "Softmax", "fp32", 9.0),
    ]
    assert precision_shares(timed, WEIGHTED_KINDS) == {"fp32": 0.75, "int8": 0.25}
    untimed = [LayerRecord(layer.name, layer.kind, layer.precision) for layer in timed]
    assert precision_shares(untimed, WEIGHTED_KINDS) == {"fp32": 0.5, "int8": 0.5}
    assert precision_shares([], WEIGHTED_KINDS) == {}
    assert precision_shares(timed[2:], WEIGHTED_KINDS) == {}


def test_a_model_without_execution_information_has_layers_of_unknown_precision() -> None:
    assert layer_records(type("Model", (), {"get_ordered_ops": lambda self: [Node("n")]})()) == (
        LayerRecord("n", "ExecutionNode", "other", None),
    )


@pytest.mark.parametrize("device", ["CPU"])
def test_the_doctor_names_what_a_device_multiplies(device: str) -> None:
    pytest.importorskip("openvino")
    from gmf_edge.engines.openvino.doctor import openvino_devices

    found = {finding.subject: finding for finding in openvino_devices()}
    assert found[f"OpenVINO {device}"].state == "ok"
    assert "multiplies FP32" in found[f"OpenVINO {device}"].detail


def test_the_doctor_says_why_openvino_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    import openvino

    from gmf_edge.engines.openvino import backend
    from gmf_edge.engines.openvino.doctor import openvino_devices

    def broken() -> None:
        raise RuntimeError("Exception from src/core.cpp:1:\nplugins.xml is missing\n")

    # as in a process that has not asked for it yet
    monkeypatch.setattr(backend, "_core", backend._core.__wrapped__)
    monkeypatch.setattr(openvino, "Core", broken)
    (finding,) = openvino_devices()
    assert (finding.subject, finding.state) == ("OpenVINO", "warning")
    assert finding.detail == "openvino cannot be started: plugins.xml is missing"
