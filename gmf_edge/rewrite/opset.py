"""The same graph at the opset of a runtime: 17 for TensorRT 8.6, whose importer ends there; 22 where the graph computes in BF16.

ONNX's own down-converter has no step for Split and ReduceMean. Of the ops in these graphs only two changed between 17 and 20: Gelu is
new in 20 (here x / 2 * (1 + erf(x / sqrt 2)), its definition), and Split's num_outputs attribute in 18 (equal parts are 17's default).
From 20 to 22 none of them changed but in the types that it takes: Conv, HardSwish and GlobalAveragePool take BF16 from 22 on.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir
from onnx_ir import DataType

from gmf_edge.errors import RewriteError
from gmf_edge.ops.graph_parts import new_constant
from gmf_edge.rewrite.hard_swish import split_hard_swish
from gmf_edge.spec import OPSET_BF16, OPSET_NEW, OPSET_OLD, Precision, Target

# the file format that came with the opset
IR_VERSION_BF16 = 10

# ops of these graphs that mean the same at 17 as at 20, and as at 22
UNCHANGED_OPS = frozenset(
    [
        "Add",
        "Cast",
        "Concat",
        "Conv",
        "Div",
        "Erf",
        "Flatten",
        "Gemm",
        "GlobalAveragePool",
        "HardSigmoid",
        "HardSwish",
        "LayerNormalization",
        "MatMul",
        "Mul",
        "QuantizeLinear",
        "DequantizeLinear",
        "Reshape",
        "Shape",
        "Slice",
        "Softmax",
        "Transpose",
        "Split",
        "Gelu",
        "Identity",
        "Squeeze",
        "Unsqueeze",
    ]
)


def for_target(graph: onnx_ir.Model, target: Target, precision: Precision = Precision.FP32) -> onnx_ir.Model:
    """A copy of the graph at the target's opset and file format version for a precision, with operators that its importers take.

    No function bodies may be left.

    Raises:
        RewriteError: the graph has an op that this page does not know to be the same at the other opset.
        SpecError: the target has no such precision.
    """
    given, wanted = graph.opset_imports[""], target.opset_for(precision)
    lowered = graph.clone()
    lowered.ir_version = IR_VERSION_BF16 if wanted == OPSET_BF16 else target.ir_version
    split_hard_swish(lowered)
    if given == wanted:
        return lowered
    ways = ((OPSET_NEW, OPSET_OLD), (OPSET_NEW, OPSET_BF16), (OPSET_BF16, OPSET_NEW))
    if (given, wanted) not in ways:
        raise RewriteError(f"no way from opset {given} to {wanted}", f"start from opset {OPSET_NEW}")
    for node in list(lowered.graph):
        if node.domain == "" and node.op_type not in UNCHANGED_OPS:
            raise RewriteError(
                f"{node.name}: it is not known that {node.op_type} is the same at opset {wanted}",
                "add it to rewrite/opset.py",
            )
        if wanted != OPSET_OLD:
            continue
        if node.op_type == "Split" and len(node.inputs) == 1:
            node.attributes.pop("num_outputs", None)
        if node.op_type == "Gelu":
            _decompose_gelu(lowered, node)
    lowered.opset_imports[""] = wanted
    return lowered


def _decompose_gelu(graph: onnx_ir.Model, node: onnx_ir.Node) -> None:
    (x,), out = node.inputs, node.outputs[0]
    assert x is not None
    dtype = x.dtype if x.dtype is not None else DataType.FLOAT

    def constant(value: float) -> onnx_ir.Value:
        return new_constant(graph, np.array(value, dtype.numpy()), f"gelu/{value:.6g}/{dtype.name.lower()}")

    def step(op_type: str, suffix: str, *inputs: Any) -> onnx_ir.Value:
        made = onnx_ir.node(op_type, list(inputs), name=f"{node.name}/{suffix}")
        made.outputs[0].name, made.outputs[0].dtype, made.outputs[0].shape = f"{out.name}/{suffix}", dtype, out.shape
        graph.graph.insert_before(node, made)
        return made.outputs[0]

    # this order of operations is the one that TensorRT and ONNX Runtime recognise and fuse
    erf = step("Erf", "erf", step("Div", "over_sqrt2", x, constant(math.sqrt(2.0))))
    result = step("Mul", "half", step("Mul", "gated", x, step("Add", "plus_one", erf, constant(1.0))), constant(0.5))
    name = out.name
    out.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.graph.remove(node, safe=True)
    result.name = name
