"""The nodes of GmfGroupMixAttention's ONNX function bodies, as they are added, and what the bodies of every layout have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gmf_edge.ops.aggregation import WINDOWS
from gmf_edge.ops.mixed_attention import CRPE_HEADS

if TYPE_CHECKING:
    import onnx


class BodyNodes:
    """A function body under construction.

    Attributes:
        nodes: so far, in their order.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def add(
        self, op_type: str, inputs: list[str], outputs: list[str] | str, references: dict[str, str] | None = None, **attributes: Any
    ) -> None:
        """Append a node; `references` maps an attribute to the function's attribute that gives its value."""
        from onnx import helper

        node = helper.make_node(op_type, inputs, [outputs] if isinstance(outputs, str) else outputs, **attributes)
        for name, source in (references or {}).items():
            node.attribute.append(_attribute_reference(name, source))
        self.nodes.append(node)

    def conv(self, value: str, weight: str, output: str, window: int, group: str | int, bias: str = "") -> None:
        """Append a convolution that keeps H and W; its group count is a number or the name of a function's attribute."""
        inputs = [value, weight, bias] if bias else [value, weight]
        pads = [window // 2] * 4
        if isinstance(group, str):
            self.add("Conv", inputs, output, {"group": group}, pads=pads)
        else:
            self.add("Conv", inputs, output, pads=pads, group=group)

    def separable(self, i: int, window: int) -> None:
        """segment_i -> mixed_i, [B, 3S, H, W]: the same weights serve q, k and v, as three groups of one convolution."""
        for kind in ("depthwise", "pointwise", "bias"):
            self.add("Concat", [f"{kind}_{i}"] * 3, f"{kind}_{i}_stacked", axis=0)
        self.conv(f"segment_{i}", f"depthwise_{i}_stacked", f"spread_{i}", window, "stacked_dim")
        self.conv(f"spread_{i}", f"pointwise_{i}_stacked", f"mixed_{i}", 1, 3, f"bias_{i}_stacked")

    def position(self, map_shape: str) -> None:
        """q, v [B, 8, d, N] -> q_position = q * CRPE(v), of the same shape; map_shape names [0, -1, H, W]."""
        # windows 3, 5, 7 on heads 0-1, 2-4, 5-7
        self.add("Constant", [], "crpe_heads", value_ints=list(CRPE_HEADS))
        self.add("Split", ["v", "crpe_heads"], [f"v_heads_{window}" for window in WINDOWS], axis=1)  # [B, 2 or 3, d, N]
        for window, group in zip(WINDOWS, ("segment_dim", "three_head_dim", "three_head_dim"), strict=True):
            self.add("Reshape", [f"v_heads_{window}", map_shape], f"v_map_{window}")  # [B, 2d or 3d, H, W]
            self.conv(f"v_map_{window}", f"crpe_weight_{window}", f"position_{window}", window, group, f"crpe_bias_{window}")
        self.add("Concat", [f"position_{window}" for window in WINDOWS], "position_map", axis=1)  # [B, 4S, H, W]
        self.add("Reshape", ["position_map", "head_token_shape"], "position")  # [B, 8, d, N]
        self.add("Mul", ["q", "position"], "q_position")

    def local_map(self) -> None:
        """segment_4 -> local_map, [B, S, H, W]: q, k and v side by side become the local features."""
        self.conv("segment_4", "depthwise_0", "spread_0", WINDOWS[0], "stacked_dim")
        self.conv("spread_0", "pointwise_0", "local_map", 1, 1)


def _attribute_reference(name: str, source: str) -> onnx.AttributeProto:
    """An attribute `name` of a node inside a function that takes the value of the function's attribute `source`, of ATTRIBUTE_NAMES."""
    from onnx import AttributeProto

    kind = "FLOAT" if source in ("scale", "epsilon") else "INT"
    return AttributeProto(name=name, ref_attr_name=source, type=AttributeProto.AttributeType.Value(kind))
