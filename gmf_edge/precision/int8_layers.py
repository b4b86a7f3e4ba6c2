"""Which nodes of a fused graph can be quantised, what each is called and what it reads. Everything else never is: softmax(k),
LayerNorm, the attention products and CRPE lie inside GmfGroupMixAttention or are no layer of this table.

kind                node                                       recipe option
qkv, proj           the attention's Linears                    qkv, proj
fc1, fc2            the MLP's Linears                          mlp
linear              any other Linear                           mlp
first_convolution   the dense Conv that reads the picture      first_convolution
convolution         any other dense Conv                       dense_convolutions
depthwise           Conv with one channel a group              depthwise
residual            Add of two activations, its skip input     residual_adds
head                Gemm                                       head
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from gmf_edge.ops.graph_parts import new_constant
from gmf_edge.precision.recipe import Recipe

OPTION_OF_KIND = {
    "qkv": "qkv",
    "proj": "proj",
    "fc1": "mlp",
    "fc2": "mlp",
    "linear": "mlp",
    "first_convolution": "first_convolution",
    "convolution": "dense_convolutions",
    "depthwise": "depthwise",
    "residual": "residual_adds",
    "head": "head",
}
LINEAR_KINDS = ("qkv", "proj", "fc1", "fc2", "linear")


@dataclass(frozen=True)
class QuantizableLayer:
    """A node that can be quantised.

    Attributes:
        name: the node's name, unique in the graph: "...gma_stage.0.att.qkv/MatMul".
        kind: a key of OPTION_OF_KIND.
        node: in the graph at hand.
        input_index: which input is the activation that is quantised.
        tensor: that activation's name.
        channel_axis: of its channels.
        weight_axis: of the weight's output channels, or None for a layer without weights.
    """

    name: str
    kind: str
    node: onnx_ir.Node
    input_index: int
    tensor: str
    channel_axis: int
    weight_axis: int | None

    @property
    def features(self) -> tuple[int, int]:
        """(values that one output sums over, output channels); (0, 0) without weights."""
        if self.weight_axis is None:
            return 0, 0
        weight = self.node.inputs[1]
        assert weight is not None
        assert weight.shape is not None
        sizes = [int(size) for size in weight.shape]
        outputs = sizes[self.weight_axis]
        return int(np.prod(sizes)) // outputs, outputs


def quantizable_layers(graph: onnx_ir.Model) -> list[QuantizableLayer]:
    """The quantisable nodes of a fused graph, in its order."""
    return [layer for node in graph.graph if (layer := _layer(graph, node)) is not None]


def chosen_layers(graph: onnx_ir.Model, recipe: Recipe, exceptions: frozenset[str] = frozenset()) -> list[QuantizableLayer]:
    """Those that a recipe quantises, less the exceptions, in the graph's order."""
    return [layer for layer in quantizable_layers(graph) if layer.name not in exceptions and _wanted(layer, recipe)]


def _wanted(layer: QuantizableLayer, recipe: Recipe) -> bool:
    if not getattr(recipe, OPTION_OF_KIND[layer.kind]) or recipe.keeps(layer.name):
        return False
    return layer.kind not in LINEAR_KINDS or min(layer.features) >= recipe.min_features


def _layer(graph: onnx_ir.Model, node: onnx_ir.Node) -> QuantizableLayer | None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm", "Conv", "Add") or len(node.inputs) < 2:
        return None
    name = node.name or str(node.outputs[0].name)
    first, second = node.inputs[0], node.inputs[1]
    if first is None or second is None or first.const_value is not None:
        return None
    if node.op_type == "Add":
        if second.const_value is not None:
            return None
        skip = 1 if _is_linear_output(first) else 0
        return QuantizableLayer(name, "residual", node, skip, str((first, second)[skip].name), -1, None)
    if second.const_value is None:
        return None
    tensor = str(first.name)
    if node.op_type == "Conv":
        groups = node.attributes.get("group")
        if groups is not None and groups.as_int() > 1:
            kind = "depthwise"
        else:
            kind = "first_convolution" if first in graph.graph.inputs else "convolution"
        return QuantizableLayer(name, kind, node, 0, tensor, 1, 0)
    if node.op_type == "Gemm":
        transposed = node.attributes.get("transB")
        return QuantizableLayer(name, "head", node, 0, tensor, 1, 0 if transposed is not None and transposed.as_int() else 1)
    module = name.rsplit("/", 1)[0].rsplit(".", 1)[-1]
    return QuantizableLayer(name, module if module in LINEAR_KINDS else "linear", node, 0, tensor, -1, 1)


def _is_linear_output(value: onnx_ir.Value) -> bool:
    """Whether it is the sum of something and a constant, which is how a Linear ends; the other input of its Add is the skip."""
    producer = value.producer()
    return (
        producer is not None
        and producer.op_type == "Add"
        and any(v is not None and v.const_value is not None for v in producer.inputs)
    )


def independent_copy(graph: onnx_ir.Model) -> onnx_ir.Model:
    """A clone whose values have types of their own: clone() shares them, and to_fp16 on the one would retype the other."""
    copied = graph.clone()
    for value in (*copied.graph.inputs, *(value for node in copied.graph for value in node.outputs)):
        value.type = copy.copy(value.type)
    return copied


def constant_array(value: onnx_ir.Value | None) -> NDArray[Any]:
    """The array of a constant input, which the caller has checked to be one."""
    assert value is not None
    assert value.const_value is not None
    array: NDArray[Any] = value.const_value.numpy()
    return array


def replace_constant(graph: onnx_ir.Model, node: onnx_ir.Node, index: int, array: NDArray[Any], name: str) -> None:
    """Give one node another constant; other users of the old one keep it."""
    old = node.inputs[index]
    node.replace_input_with(index, new_constant(graph, array, name))
    if old is not None and old.name is not None and not old.uses() and old.name in graph.graph.initializers:
        del graph.graph.initializers[old.name]
