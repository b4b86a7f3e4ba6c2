"""Fused graph -> the form for CPU libraries: standard ops, tokens everywhere but inside chains of convolutions.

Such libraries run convolutions on blocks of channels. Turning tokens into blocks is free of an own pass where the transpose before it
is 4-D; so the body of group-mix attention is channel_last_body's, and two rules do the same for what surrounds it:

maps             [B, N, C] -> [B, C, N] -> [B, C, H, W]        becomes  [B, N, C] -> [B, H, W, C] -> [B, C, H, W], and the way back
segments         Linear -> split of its columns                becomes  one Gemm a segment, bias inside: the split's copy is saved

The second one copies the qkv weights, 3C^2 of a block's 12C^2: what it reads is contiguous, and no value is computed otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import onnx_ir.passes.common as onnx_passes

from gmf_edge.ops.channel_last_body import channel_last_body
from gmf_edge.ops.graph_parts import new_constant, set_body
from gmf_edge.rewrite.bodies import inline_bodies
from gmf_edge.rewrite.constants import attribute_of, constant_of

TOKENS_TO_CHANNELS, TOKENS_TO_MAP, MAP_TO_TOKENS = [0, 2, 1], [0, 3, 1, 2], [0, 2, 3, 1]


def channel_last_form(fused: onnx_ir.Model) -> onnx_ir.Model:
    """A copy of a fused graph, FP32 or with Q/DQ round its Linears, as standard ops laid out for CPU libraries.

    Args:
        fused: with GmfGroupMixAttention nodes; left as it is.
    """
    copy = fused.clone()
    set_body(copy, channel_last_body(copy.opset_imports[""]))
    graph = inline_bodies(copy)
    grids_for_maps(graph)
    linears_by_segment(graph)
    onnx_passes.RemoveUnusedNodesPass()(graph)
    return graph


def grids_for_maps(graph: onnx_ir.Model) -> int:
    """Make 3-D transposes between tokens and maps 4-D ones, and drop reshapes that change nothing; how many there were."""
    changed = 0
    for node in list(graph.graph):
        out = node.outputs[0]
        # an output has its own name, and its source may be an input
        if node.op_type == "Reshape" and not out.is_graph_output() and _same_shape(node.inputs[0], out):
            source = node.inputs[0]
            assert source is not None
            out.replace_all_uses_with(source)
            graph.graph.remove(node, safe=True)
            changed += 1
        elif node.op_type == "Transpose" and list(attribute_of(node, "perm", ())) == TOKENS_TO_CHANNELS:
            changed += _to_map(graph, node) or _to_tokens(graph, node)
    return changed


def _to_map(graph: onnx_ir.Model, transpose: onnx_ir.Node) -> bool:
    """Transpose, Reshape to [B, C, H, W] -> Reshape to [B, H, W, C], Transpose."""
    reshape = _only_user(transpose.outputs[0])
    sides = _static_sides(reshape.outputs[0], 4) if reshape is not None and reshape.op_type == "Reshape" else None
    if reshape is None or sides is None:
        return False
    channels, height, width = sides
    grid = _insert(graph, transpose, "Reshape", [transpose.inputs[0], _shape(graph, 0, height, width, channels)], "grid")
    maps = _insert(graph, transpose, "Transpose", [grid], "map", perm=TOKENS_TO_MAP)
    _replace(graph, reshape, maps)
    graph.graph.remove(transpose, safe=True)
    return True


def _to_tokens(graph: onnx_ir.Model, transpose: onnx_ir.Node) -> bool:
    """Reshape of [B, C, H, W], Transpose -> Transpose, Reshape to [B, N, C]."""
    joined = transpose.inputs[0]
    reshape = None if joined is None else joined.producer()
    if joined is None or reshape is None or reshape.op_type != "Reshape" or not _only_for(joined, transpose):
        return False
    sides, tokens = _static_sides(reshape.inputs[0], 4), _static_sides(transpose.outputs[0], 3)
    if sides is None or tokens is None or tokens != (sides[1] * sides[2], sides[0]):
        return False
    grid = _insert(graph, transpose, "Transpose", [reshape.inputs[0]], "grid", perm=MAP_TO_TOKENS)
    flat = _insert(graph, transpose, "Reshape", [grid, _shape(graph, 0, *tokens)], "tokens")
    _replace(graph, transpose, flat)
    graph.graph.remove(reshape, safe=True)
    return True


def linears_by_segment(graph: onnx_ir.Model) -> int:
    """One Gemm for each equal part of the columns of a Linear that is split into reshaped parts; how many Linears there were.

    A Linear is Add(MatMul(x, W), b), or Reshape(Gemm(x, W, b)) as gmf_edge.precision.integer_gemm leaves it, where W and b may come
    from DequantizeLinear. It stays whole where another node reads it, or where a shape is not known.
    """
    return sum(_by_segment(graph, node) for node in list(graph.graph) if node.op_type == "Split")


def _by_segment(graph: onnx_ir.Model, split: onnx_ir.Node) -> bool:
    whole = split.inputs[0]
    last = None if whole is None else whole.producer()
    if whole is None or last is None or not _only_for(whole, split) or attribute_of(split, "axis", 0) not in (2, -1):
        return False
    parts = [_only_user(value) for value in split.outputs]
    grids = [_static_sides(part.outputs[0], 4) if part is not None and part.op_type == "Reshape" else None for part in parts]
    linear = _linear(last, whole)
    if linear is None or None in grids or len(set(grids)) != 1:
        return False
    multiply, x, weight, bias = linear
    if not (_sliceable(weight) and _sliceable(bias)):
        return False
    if multiply.op_type == "MatMul":
        inputs = int(_constant(weight).shape[0])
        x = _insert(graph, multiply, "Reshape", [x, _shape(graph, -1, inputs)], "flat")
    for index, (part, grid) in enumerate(zip(parts, grids, strict=True)):
        assert part is not None
        assert grid is not None
        columns = slice(index * grid[-1], (index + 1) * grid[-1])
        name = f"segment_{index}"
        operands = [x, *(_columns(graph, multiply, value, columns, index) for value in (weight, bias))]
        product = _insert(graph, multiply, "Gemm", operands, name)
        tokens = _insert(graph, multiply, "Reshape", [product, _shape(graph, -1, *grid)], f"{name}/grid")
        _replace(graph, part, tokens)
    doomed = [split, last] if multiply is last else [split, last, multiply]
    for node in doomed:
        graph.graph.remove(node, safe=True)
    return True


def _linear(last: onnx_ir.Node, whole: onnx_ir.Value) -> tuple[onnx_ir.Node, onnx_ir.Value, onnx_ir.Value, onnx_ir.Value] | None:
    """(MatMul or Gemm, x, W [inputs, outputs], b [outputs]) of the Linear that ends with this node."""
    for value in last.inputs:
        multiply = None if value is None else value.producer()
        if value is None or multiply is None or not _only_for(value, last):
            continue
        if last.op_type == "Add" and multiply.op_type == "MatMul":
            found = (*multiply.inputs, last.inputs[1] if last.inputs[0] is value else last.inputs[0])
        elif last.op_type == "Reshape" and multiply.op_type == "Gemm" and not multiply.attributes:
            found = tuple(multiply.inputs)
        else:
            continue
        if len(found) == 3 and None not in found:
            return (multiply, *found)
    return None


def _sliceable(value: onnx_ir.Value) -> bool:
    """Whether it is a constant, or one behind a DequantizeLinear along its last axis."""
    if value.const_value is not None:
        return True
    source = value.producer()
    if source is None or source.op_type != "DequantizeLinear" or any(constant_of(each) is None for each in source.inputs):
        return False
    codes, scale = _constant(source.inputs[0]), _constant(source.inputs[1])
    axis = int(attribute_of(source, "axis", 1))
    return scale.ndim == 1 and axis in (-1, codes.ndim - 1)


def _columns(graph: onnx_ir.Model, before: onnx_ir.Node, value: onnx_ir.Value, columns: slice, index: int) -> onnx_ir.Value:
    """The last axis' columns of a value for which _sliceable holds."""
    if value.const_value is not None:
        part = np.ascontiguousarray(_constant(value)[..., columns])
        return new_constant(graph, part, f"{value.name}/segment_{index}")
    source = value.producer()
    assert source is not None
    inputs = [_columns(graph, before, each, columns, index) for each in source.inputs if each is not None]
    # its codes, scales and zero points are of one column each
    axis = int(attribute_of(source, "axis", 1))
    node = onnx_ir.node("DequantizeLinear", inputs, attributes={"axis": axis}, name=f"{source.name}/segment_{index}")
    node.outputs[0].name, node.outputs[0].dtype = f"{value.name}/segment_{index}", value.dtype
    graph.graph.insert_before(before, node)
    return node.outputs[0]


def _constant(value: onnx_ir.Value | None) -> Any:
    array = constant_of(value)
    assert array is not None
    return array


def _only_user(value: onnx_ir.Value) -> onnx_ir.Node | None:
    """The one node that reads a value once; None where there are more, or where the graph returns it."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _only_for(value: onnx_ir.Value, node: onnx_ir.Node) -> bool:
    """Whether that node reads the value once, and nothing else does."""
    return bool(_only_user(value) is node)


def _static_sides(value: onnx_ir.Value | None, rank: int) -> tuple[int, ...] | None:
    """All sizes but the batch, where they are known."""
    if value is None or value.shape is None or len(value.shape) != rank:
        return None
    sides = tuple(value.shape)[1:]
    return tuple(int(side) for side in sides) if all(isinstance(side, int) for side in sides) else None


def _same_shape(first: onnx_ir.Value | None, second: onnx_ir.Value) -> bool:
    """Whether both have the same rank and known sizes behind the batch, so that the batch is the same too."""
    if first is None or first.shape is None or second.shape is None or len(first.shape) < 2:
        return False
    sides = _static_sides(first, len(first.shape))
    return sides is not None and sides == _static_sides(second, len(first.shape))


def _shape(graph: onnx_ir.Model, *sizes: int) -> onnx_ir.Value:
    return new_constant(graph, np.asarray(sizes, np.int64), f"shape/{'x'.join(map(str, sizes))}")


def _insert(
    graph: onnx_ir.Model, before: onnx_ir.Node, op_type: str, inputs: list[onnx_ir.Value | None], what: str, **attributes: Any
) -> onnx_ir.Value:
    """Insert a node that returns FP32, named after the one that it stands before; its output."""
    name = f"{before.name or before.outputs[0].name}/{what}"
    node = onnx_ir.node(op_type, inputs, attributes=attributes, name=name)
    node.outputs[0].name, node.outputs[0].dtype = f"{name}/output", onnx_ir.DataType.FLOAT
    graph.graph.insert_before(before, node)
    return node.outputs[0]


def _replace(graph: onnx_ir.Model, node: onnx_ir.Node, value: onnx_ir.Value) -> None:
    """Put another value of the same shape in the place of a node's output, name included, and remove the node."""
    # its name too: a backbone's maps are such outputs
    name, value.shape = node.outputs[0].name, node.outputs[0].shape
    node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)
    graph.graph.remove(node, safe=True)
    value.name = name
