"""A portable graph of one image size -> the same graph of any: H and W of every Reshape come from the shape of the stage's own map.

Only Reshape has sizes in it. With H, W of a stage's map and N = H * W, what stands in these graphs is

    [B, C, N] -> [B, C, H, W]           tokens to a map: H and W are read from the map that the stage began with
    [B, C, H, W] -> [B, C, N], [B, C, N] -> [B, 8, d, N], [B, 8, d, N] -> [B, C, N]    the last axis is what is left: -1
    [B * N, O] -> [B, N, O]             behind an integer Gemm: N is H * W of the stage's map

The plugin form stays of one size: GmfGroupMixAttention has H and W in its attributes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir
import onnx_ir.passes.common as onnx_passes
from onnx_ir import DataType

from gmf_edge.errors import RewriteError
from gmf_edge.ops.graph_parts import new_constant

BATCH_AXIS, HEIGHT_AXIS, WIDTH_AXIS = "batch", "height", "width"


def with_any_size(portable: onnx_ir.Model) -> onnx_ir.Model:
    """A copy that takes images [B, 3, height, width] of any multiples of 32.

    Args:
        portable: standard operators only, with one image size, all shapes inferred but for the batch.

    Raises:
        RewriteError: a Reshape of another kind.
    """
    graph = portable.clone()
    onnx_passes.ShapeInferencePass()(graph)
    sizes = _StageSizes(graph)
    for node in [node for node in graph.graph if node.op_type == "Reshape"]:
        before, after = (_static(value) for value in (node.inputs[0], node.outputs[0]))
        shape: onnx_ir.Value
        if before == after:
            # what is left of a map that became tokens and a map again
            _bypass(node)
            continue
        if len(before) == 2 and len(after) == 3:
            shape = sizes.joined([*sizes.batch_and_tokens(after[1]), after[2]])
        elif len(before) in (3, 4) and len(after) == 4 and after[2] * after[3] == before[-1]:
            batch, height, width = sizes.axes((after[2], after[3]))
            shape = sizes.joined([batch, after[1], height, width])
        elif len(before) in (3, 4) and len(after) in (3, 4):
            shape = sizes.joined([0, *after[1:-1], -1])
        elif len(after) == 2:
            shape = sizes.joined([-1, after[1]])
        else:
            raise RewriteError(
                f"{node.name} reshapes {before} to {after}, which has no known size in it", "report this with the graph"
            )
        node.replace_input_with(1, shape)
        # the exporter's 1 would make a 0 mean no elements instead of the input's own axis
        node.attributes.pop("allowzero", None)
    _forget_shapes(graph)
    onnx_passes.RemoveUnusedNodesPass()(graph)
    onnx_passes.ShapeInferencePass()(graph)
    return graph


class _StageSizes:
    """Values of the graph that hold a stage's B, H, W and N, made where they are asked for the first time."""

    def __init__(self, graph: onnx_ir.Model) -> None:
        self.graph = graph
        # the first map of each size: what a stage begins with
        self.maps: dict[tuple[int, int], onnx_ir.Value] = {}
        for node in graph.graph:
            shape = node.outputs[0].shape
            if node.op_type == "Conv" and shape is not None and all(isinstance(side, int) for side in shape[2:]):
                self.maps.setdefault((int(shape[2]), int(shape[3])), node.outputs[0])
        self.made: dict[str, onnx_ir.Value] = {}

    def axes(self, size: tuple[int, int]) -> tuple[onnx_ir.Value, onnx_ir.Value, onnx_ir.Value]:
        """(B, H, W), int64 [1] each, of the stage whose maps have this size now."""
        if size not in self.maps:
            raise RewriteError(f"no map of {size[0]} x {size[1]} begins a stage", "report this with the graph")
        source = self.maps[size]
        names = [f"{source.name}/size/{axis}" for axis in (BATCH_AXIS, HEIGHT_AXIS, WIDTH_AXIS)]
        if names[0] not in self.made:
            shape = self._node("Shape", [source], f"{source.name}/size", [source])
            behind = shape
            for name, axis in zip(names, (0, 2, 3), strict=True):
                bounds = [self._constant([number]) for number in (axis, axis + 1, 0)]
                behind = self.made[name] = self._node("Slice", [shape, *bounds], name, [behind])
        batch, height, width = (self.made[name] for name in names)
        return batch, height, width

    def batch_and_tokens(self, count: int) -> tuple[onnx_ir.Value, onnx_ir.Value]:
        """(B, N), int64 [1] each, of the stage that has this many tokens now."""
        size = next((size for size in self.maps if size[0] * size[1] == count), None)
        if size is None:
            raise RewriteError(f"no stage has {count} tokens", "report this with the graph")
        batch, height, width = self.axes(size)
        name = f"{self.maps[size].name}/size/tokens"
        if name not in self.made:
            self.made[name] = self._node("Mul", [height, width], name, [width])
        return batch, self.made[name]

    def joined(self, entries: list[int | onnx_ir.Value]) -> onnx_ir.Value:
        """A Reshape's target of these entries: a constant where all are numbers, else made behind the sizes, once for equal ones."""
        if all(isinstance(entry, int) for entry in entries):
            return self._constant([entry for entry in entries if isinstance(entry, int)])
        name = "/".join(str(entry) if isinstance(entry, int) else str(entry.name) for entry in entries)
        if name not in self.made:
            parts = [self._constant([entry]) if isinstance(entry, int) else entry for entry in entries]
            self.made[name] = self._node("Concat", parts, name, [part for part in parts if part.producer() is not None], axis=0)
        return self.made[name]

    def _constant(self, numbers: list[int]) -> onnx_ir.Value:
        return new_constant(self.graph, np.array(numbers, np.int64), "sizes/" + "_".join(map(str, numbers)))

    def _node(
        self, op_type: str, inputs: list[onnx_ir.Value], name: str, behind: list[onnx_ir.Value], **attributes: int
    ) -> onnx_ir.Value:
        """The result of a new node behind the last of what it is made of, which stands before every node of its stage."""
        made = onnx_ir.node(op_type, inputs, attributes=attributes or None, name=name)
        made.outputs[0].name, made.outputs[0].type = f"{name}/value", onnx_ir.TensorType(DataType.INT64)
        producer = behind[-1].producer()
        assert producer is not None
        self.graph.graph.insert_after(producer, made)
        return made.outputs[0]


def _bypass(node: onnx_ir.Node) -> None:
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    assert not result.is_graph_output()
    result.replace_all_uses_with(source)


def _static(value: onnx_ir.Value | None) -> list[int]:
    """A shape with 0 for the batch; RewriteError where another axis is not known."""
    assert value is not None
    if value.shape is None or any(not isinstance(side, int) for side in value.shape[1:]):
        raise RewriteError(f"the shape of {value.name} is not known: {value.shape}", "report this with the graph")
    return [0, *(int(side) for side in value.shape[1:])]


def _forget_shapes(graph: onnx_ir.Model) -> None:
    """Drop the shapes that were inferred for one size, and name the axes of images."""
    images = graph.graph.inputs[0]
    assert images.shape is not None
    images.shape = onnx_ir.Shape([images.shape[0], images.shape[1], HEIGHT_AXIS, WIDTH_AXIS])
    for node in graph.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
            elif value.shape is not None and len(value.shape) == 4:
                # logits [B, classes] know no size
                sides = (f"{value.name}_{HEIGHT_AXIS}", f"{value.name}_{WIDTH_AXIS}")
                value.shape = onnx_ir.Shape([*value.shape[:2], *sides])
