"""HardSwish(x) = x * HardSigmoid(x; 1/6, 1/2): its definition (ONNX HardSwish, opset 14), for types that an importer does not take whole.

TensorRT's importer of HardSwish refuses BF16 in every version that was read (gmf_edge/parsers/operators.py) and builds the very same
two layers from what it takes; the importers of HardSigmoid and Mul ask for no type.
"""

from __future__ import annotations

import onnx_ir
from onnx_ir import DataType

# HardSwish's own constants
ALPHA, BETA = 1.0 / 6.0, 0.5


def split_hard_swish(graph: onnx_ir.Model, dtypes: frozenset[DataType] = frozenset([DataType.BFLOAT16])) -> int:
    """Replace the HardSwish nodes of these types in place; how many there were."""
    found = [node for node in graph.graph if node.op_type == "HardSwish" and node.domain == "" and node.inputs[0] is not None]
    chosen = [node for node in found if node.inputs[0] is not None and node.inputs[0].dtype in dtypes]
    for node in chosen:
        x, out = node.inputs[0], node.outputs[0]
        assert x is not None
        gate = onnx_ir.node("HardSigmoid", [x], attributes={"alpha": ALPHA, "beta": BETA}, name=f"{node.name}/gate")
        gate.outputs[0].name, gate.outputs[0].type, gate.outputs[0].shape = f"{out.name}/gate", x.type, x.shape
        product = onnx_ir.node("Mul", [x, gate.outputs[0]], name=node.name)
        product.outputs[0].type, product.outputs[0].shape = out.type, out.shape
        graph.graph.insert_before(node, [gate, product])
        name = out.name
        out.replace_all_uses_with(product.outputs[0], replace_graph_outputs=True)
        graph.graph.remove(node, safe=True)
        product.outputs[0].name = name
    return len(chosen)
