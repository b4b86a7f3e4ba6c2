"""The files that NVIDIA's viewers open: exactly trtexec's keys."""

from __future__ import annotations

import json

from gmf_edge.bench.trtexec_files import inspector_layers_json, layers_json, profile_json, times_json
from gmf_edge.engines.protocol import EngineFacts, LayerRecord
from gmf_edge.engines.trace import InferenceTrace, LayerRuns
from gmf_edge.spec import Task


def test_times_have_trtexecs_keys_in_its_order() -> None:
    trace = InferenceTrace(0, 0.0, 0.5, 1.0, 1.25, 1.5, 4.0, 4.5, 4.625)
    (told,) = json.loads(times_json([trace]))
    when = [f"{moment}{step}Ms" for step in ("Enq", "H2d", "Compute", "D2h") for moment in ("start", "end")]
    assert list(told) == [*when, "h2dMs", "computeMs", "d2hMs", "latencyMs"]
    assert (told["h2dMs"], told["computeMs"], told["d2hMs"], told["latencyMs"]) == (0.25, 2.5, 0.125, 2.875)


def test_a_profile_has_trtexecs_sums_averages_and_medians() -> None:
    head, first, second = json.loads(profile_json([LayerRuns("a", (1.0, 2.0, 6.0)), LayerRuns("a", (1.0, 1.0, 1.0))]))
    assert head == {"count": 3}
    assert first == {"name": "a", "timeMs": 9.0, "averageMs": 3.0, "medianMs": 2.0, "percentage": 75.0}
    assert second["percentage"] == 25.0


def test_the_inspectors_answer_is_passed_on_control_characters_and_all() -> None:
    answer = '{"Layers": [{"Name": "a", "Metadata": "[ONNX Layer: a]\x1e[ONNX Layer: b]"}], "Bindings": ["images", "logits"]}'
    assert json.loads(inspector_layers_json(answer)) == json.loads(answer, strict=False)


def test_a_backend_without_inspector_gives_the_same_keys() -> None:
    facts = EngineFacts("onnxruntime", "1", "cpu", "portable", layers=(LayerRecord("conv", "Conv", "fp32", 1.0),))
    told = json.loads(layers_json(facts, Task.CLASSIFY))
    assert (list(told), told["Bindings"]) == (["Layers", "Bindings"], ["images", "logits"])
    assert told["Layers"] == [{"Name": "conv", "LayerType": "Conv", "Inputs": [], "Outputs": [], "Precision": "fp32"}]
    of_backbone = json.loads(layers_json(facts, Task.FEATURES))
    assert of_backbone["Bindings"] == ["images", "stage1", "stage2", "stage3", "stage4"]
