"""BF16: FP32's range with 8 bits of mantissa. What half.to_half does, and nothing more: no weight and no activation is too large.

ONNX gives Conv and HardSwish BF16 at opset 22 only, which these graphs carry (gmf_edge.rewrite.opset). ONNX Runtime's CPU has BF16
kernels for what moves data and for no arithmetic (tried with 1.32: Add, Mul, MatMul, Gemm, Conv, HardSwish, Gelu, Softmax are refused at
opset 20 and at 22), so its graph computes between casts, see with_fp32_kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir
from onnx_ir import DataType

from gmf_edge.ops.graph_parts import set_body
from gmf_edge.ops.group_mix_attention import OP_TYPE, function_body
from gmf_edge.precision.half import fp32_statistics, head_islands, insert_cast, node_name, to_half
from gmf_edge.spec import OPSET_BF16

# what ONNX Runtime's CPU runs on BF16 tensors: operators that move values and compute none
BF16_KERNELS = frozenset(
    ["Cast", "Concat", "Flatten", "Identity", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"]
)


@dataclass(frozen=True)
class Bf16Report:
    """What the lowering did.

    Attributes:
        islands: layers left in FP32, name -> reason.
        fp32_statistics: nodes that are no islands and still compute a mean, a variance or a softmax in FP32, or hold one that does.
    """

    islands: Mapping[str, str] = field(default_factory=dict)
    fp32_statistics: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        return {"islands": dict(self.islands), "fp32_statistics": list(self.fp32_statistics)}


def to_bf16(graph: onnx_ir.Model, islands: Mapping[str, str] | None = None, io_dtype: str = "float32") -> Bf16Report:
    """Lower a fused graph to BF16 in place, for a strongly typed runtime: TensorRT 8.6, the weakly typed one, has no BF16.

    Args:
        graph: see half.to_half.
        islands: names of nodes to leave in FP32, each with the reason.
        io_dtype: "float32" or "float16", dtype of input and outputs: NumPy has no BF16 to hand over.

    Returns:
        What stayed FP32; the graph is of opset 22 now.
    """
    kept = {**head_islands(graph), **(islands or {})}
    statistics = fp32_statistics(graph, kept)
    to_half(graph, DataType.BFLOAT16, kept, io_dtype)
    # at once: at an older opset a BF16 convolution has no type that could be inferred
    graph.opset_imports[""] = OPSET_BF16
    if any(function.name == OP_TYPE for function in graph.functions.values()):
        set_body(graph, function_body(OPSET_BF16))
    return Bf16Report(kept, statistics)


def with_fp32_kernels(portable: onnx_ir.Model) -> onnx_ir.Model:
    """A copy for a runtime without BF16 arithmetic: every tensor stays BF16, every operator that computes does so in FP32.

    Each such operator reads its BF16 inputs through casts to FP32, and its result is rounded to BF16 by a cast: what ONNX Runtime by
    itself does for FP16 on a CPU. A graph without BF16 comes back as it is.
    """
    graph = portable.clone()
    wide: dict[str, onnx_ir.Value] = {}
    for node in list(graph.graph):
        if node.op_type in BF16_KERNELS:
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype == DataType.BFLOAT16:
                name = str(value.name)
                if name not in wide:
                    wide[name] = insert_cast(graph, value, DataType.FLOAT, node, f"{name}/for_fp32_kernel")
                node.replace_input_with(index, wide[name])
        for value in node.outputs:
            if value.dtype == DataType.BFLOAT16:
                _round_to_bf16(graph, node, value)
    return graph


def _round_to_bf16(graph: onnx_ir.Model, node: onnx_ir.Node, value: onnx_ir.Value) -> None:
    """The operator's result becomes FP32, and its users read it through a cast to BF16."""
    cast = onnx_ir.node(
        "Cast", [value], attributes={"to": DataType.BFLOAT16}, name=f"{node_name(node)}/to_bfloat16/{value.index()}"
    )
    rounded = cast.outputs[0]
    rounded.type, rounded.shape = onnx_ir.TensorType(DataType.BFLOAT16), value.shape
    value.replace_all_uses_with(rounded, replace_graph_outputs=True)
    cast.replace_input_with(0, value)
    rounded.name, value.name = value.name, f"{value.name}/fp32"
    value.type = onnx_ir.TensorType(DataType.FLOAT)
    graph.graph.insert_after(node, cast)
