"""The JSON files that trtexec writes and NVIDIA's viewers open: --exportTimes, --exportProfile, --exportLayerInfo.

times     [{"startEnqMs", "endEnqMs", "startH2dMs", ..., "latencyMs"}, ...]                  one object an inference
profile   [{"count": runs}, {"name", "timeMs", "averageMs", "medianMs", "percentage"}, ...]  one object a layer
layers    {"Layers": [...], "Bindings": [...]}                                               the engine inspector's own answer

Source: sampleReporting.cpp of NVIDIA/TensorRT (exportJSONTrace, Profiler::exportJSONProfile, printLayerInfo).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence

from gmf_edge.engines.protocol import EngineFacts
from gmf_edge.engines.trace import InferenceTrace, LayerRuns
from gmf_edge.spec import IMAGES, LOGITS, MAPS, Task


def times_json(traces: Iterable[InferenceTrace]) -> str:
    """--exportTimes."""
    return json.dumps(
        [
            {
                "startEnqMs": trace.start_enqueue_ms,
                "endEnqMs": trace.end_enqueue_ms,
                "startH2dMs": trace.start_h2d_ms,
                "endH2dMs": trace.end_h2d_ms,
                "startComputeMs": trace.start_compute_ms,
                "endComputeMs": trace.end_compute_ms,
                "startD2hMs": trace.start_d2h_ms,
                "endD2hMs": trace.end_d2h_ms,
                "h2dMs": trace.h2d_ms,
                "computeMs": trace.compute_ms,
                "d2hMs": trace.d2h_ms,
                "latencyMs": trace.latency_ms,
            }
            for trace in traces
        ],
        indent=1,
    )


def profile_json(layers: Sequence[LayerRuns]) -> str:
    """--exportProfile."""
    totals = [sum(layer.times_ms) for layer in layers]
    whole = sum(totals)
    head = {"count": max((len(layer.times_ms) for layer in layers), default=0)}
    rows = [
        {
            "name": layer.name,
            "timeMs": total,
            "averageMs": total / len(layer.times_ms),
            "medianMs": statistics.median(layer.times_ms),
            "percentage": 100 * total / whole if whole else 0.0,
        }
        for layer, total in zip(layers, totals, strict=True)
    ]
    return json.dumps([head, *rows], indent=1)


def inspector_layers_json(answer: str) -> str:
    """--exportLayerInfo, of TensorRT's own answer."""
    # names may hold control characters
    return json.dumps(json.loads(answer, strict=False), indent=1)


def layers_json(facts: EngineFacts, task: Task) -> str:
    """--exportLayerInfo, of a backend that has no inspector: the same keys with what it tells of its layers, in execution order.

    Such a backend tells no tensors, so "Inputs" and "Outputs" are empty; "Precision" is this project's.
    """
    outputs = (LOGITS,) if task is Task.CLASSIFY else MAPS
    layers = [
        {"Name": layer.name, "LayerType": layer.kind, "Inputs": [], "Outputs": [], "Precision": layer.precision}
        for layer in facts.layers
    ]
    return json.dumps({"Layers": layers, "Bindings": [IMAGES, *outputs]}, indent=1)
