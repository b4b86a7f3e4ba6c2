"""What a compiled OpenVINO model says of its layers: the execution graph, after OpenVINO's own fusions.

A node of CompiledModel.get_runtime_model() has in its rt_info: layerType, runtimePrecision (what it computes in), primitiveType (the
kernel), and, with PERF_COUNT, execTimeMcs (microseconds, or "not_executed"). Source: openvino/runtime/exec_model_info.hpp.
"""

from __future__ import annotations

from typing import Any

from gmf_edge.engines.protocol import LayerRecord

# layers that carry weights or multiply matrices: the ones whose precision a request for FP16 or INT8 is about
WEIGHTED_KINDS = frozenset({"Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul", "Gemm"})
_NOT_COMPUTED = frozenset({"Const", "Input", "Output", "Parameter", "Result"})
_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8", "f64": "fp64"}


def layer_records(runtime_model: Any) -> tuple[LayerRecord, ...]:
    """Of an execution graph (openvino.Model), in the order of execution."""
    records = []
    for node in runtime_model.get_ordered_ops():
        info = {name: node.rt_info[name].astype(str) for name in node.rt_info}
        kind = info.get("layerType", node.get_type_name())
        if kind not in _NOT_COMPUTED:
            precision = _PRECISIONS.get(info.get("runtimePrecision", ""), "other")
            records.append(LayerRecord(node.get_friendly_name(), kind, precision, _milliseconds(info.get("execTimeMcs", ""))))
    return tuple(records)


def _milliseconds(text: str) -> float | None:
    return int(text) / 1000 if text.isdigit() else None
