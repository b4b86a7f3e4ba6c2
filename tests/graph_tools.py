"""Small ONNX graphs for tests: made from nodes and constants, run in ONNX Runtime without its own rewriting, held against a rule."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxscript.rewriter.pattern import RewriteRule

Array = NDArray[Any]


def node(op_type: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    """A node of space-separated inputs and outputs, named after its first output."""
    return helper.make_node(op_type, inputs.split(), output.split(), name=f"layer/{output.split()[0]}", **attributes)


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Array],
    shape: Sequence[int | str],
    outputs: Sequence[str] = ("out",),
    opset: int = 20,
) -> onnx_ir.Model:
    """A graph with the FP32 input "x" of the given shape and constants as initializers."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return onnx_ir.from_proto(onnx.shape_inference.infer_shapes(model))


def session_of(graph: onnx_ir.Model, optimise: bool = False) -> ort.InferenceSession:
    """The graph in ONNX Runtime on the CPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        # weights beside a loaded graph come along
        onnx_ir.save(onnx_ir.external_data.load_to_model(graph), path)
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(graph: onnx_ir.Model, images: Array, optimise: bool = False) -> Array:
    """The first output for the one input."""
    session = session_of(graph, optimise)
    result: Array = session.run(None, {session.get_inputs()[0].name: images})[0]
    return result


def kinds(graph: onnx_ir.Model) -> Counter[str]:
    """How often each op stands in the graph."""
    return Counter(each.op_type for each in graph.graph)


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def relative_error(found: Array, wanted: Array) -> float:
    """Largest absolute difference over the largest magnitude wanted."""
    return float(np.abs(found.astype(np.float64) - wanted).max() / np.abs(wanted).max())


def refusal(rule: RewriteRule, graph: onnx_ir.Model) -> str:
    """The reason for which the rule declines a place that its pattern fits; empty where no place fits its pattern."""
    checked = rule._condition_function
    reasons: list[str] = []

    def listening(*arguments: Any, **values: Any) -> Any:
        result = checked(*arguments, **values)
        if not result:
            reasons.append(str(result.reason))
        return result

    rule._condition_function = listening
    try:
        before = kinds(graph)
        fired = rule.apply_to_model(graph)
    finally:
        rule._condition_function = checked
    assert fired == 0, f"the rule fired {fired} times"
    assert kinds(graph) == before
    return reasons[0] if reasons else ""
