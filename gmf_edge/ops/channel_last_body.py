"""GmfGroupMixAttention for CPU libraries: the same operator as ops/group_mix_attention.py, its body laid out for convolutions in blocks.

ONNX Runtime and OpenVINO run convolutions on blocks of 8 or 16 channels. What stands before and after such a chain of convolutions is
turned into blocks and back; a 4-D transpose between tokens and maps disappears in that turn, a 3-D one is a pass of its own.

                       body of function_body                       here
qkv -> segments        transpose, split of maps                    split of tokens, which qkv_segments.py moves into the Linear
tokens -> maps         [B, N, C] -> [B, C, N] -> [B, C, H, W]      [B, N, C] -> [B, H, W, C] -> [B, C, H, W]
segment 0's HardSwish  by itself                                   of a depthwise 1 x 1 convolution with ones, inside the blocks
q, k, v                four splits, three concatenations           one concatenation inside the blocks, one split
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gmf_edge.ops.aggregation import NUM_SEGMENTS, WINDOWS
from gmf_edge.ops.group_mix_attention import ATTRIBUTE_NAMES, DOMAIN, INPUT_NAMES, OP_TYPE, OUTPUT_NAME, attribute_reference
from gmf_edge.ops.mixed_attention import CRPE_HEADS, NUM_HEADS

if TYPE_CHECKING:
    import onnx


def channel_last_body(opset: int) -> onnx.FunctionProto:
    """The operator in FP32 as an ONNX local function of standard operators; inputs, output and attributes as function_body's.

    Args:
        opset: of the standard domain, 18 or newer.
    """
    from onnx import helper

    nodes: list[onnx.NodeProto] = []

    def add(
        op_type: str, inputs: list[str], outputs: list[str] | str, references: dict[str, str] | None = None, **attributes: Any
    ) -> None:
        node = helper.make_node(op_type, inputs, [outputs] if isinstance(outputs, str) else outputs, **attributes)
        for name, source in (references or {}).items():
            node.attribute.append(attribute_reference(name, source))
        nodes.append(node)

    def conv(value: str, weight: str, output: str, window: int, group: str | int, bias: str = "") -> None:
        inputs = [value, weight, bias] if bias else [value, weight]
        pads = [window // 2] * 4
        if isinstance(group, str):
            add("Conv", inputs, output, {"group": group}, pads=pads)
        else:
            add("Conv", inputs, output, pads=pads, group=group)

    # shapes: 0 copies a dimension, which leaves the batch free
    add("Constant", [], "first_axis", value_ints=[0])
    for name in ("height", "width", "segment_dim", "stacked_dim"):
        add("Constant", [], name, {"value_int": name})
        add("Unsqueeze", [name, "first_axis"], f"{name}_1d")
    add("Mul", ["height_1d", "width_1d"], "tokens_1d")
    add("Mul", ["segment_dim_1d", "tokens_1d"], "segment_size")
    for name, value in (("copy", [0]), ("rest", [-1]), ("ones", [1]), ("four", [4]), ("three", [3]), ("heads", [NUM_HEADS])):
        add("Constant", [], name, value_ints=value)
    add("Concat", ["copy", "height_1d", "width_1d", "rest"], "grid_shape", axis=0)  # [0, H, W, -1]
    add("Concat", ["copy", "rest", "segment_dim_1d"], "local_shape", axis=0)  # [0, -1, S]
    add("Concat", ["copy", "four", "three", "segment_size"], "proxy_shape", axis=0)  # [0, 4, 3, S * N]
    add("Concat", ["copy", "heads", "rest", "tokens_1d"], "head_token_shape", axis=0)  # [0, 8, -1, N]
    add("Concat", ["copy", "rest", "height_1d", "width_1d"], "map_shape", axis=0)  # [0, -1, H, W]
    add("Concat", ["copy", "rest", "tokens_1d"], "channel_token_shape", axis=0)  # [0, -1, N]

    add("Split", ["qkv"], [f"tokens_{i}" for i in range(NUM_SEGMENTS)], axis=2, num_outputs=NUM_SEGMENTS)  # 5 x [B, N, 3S]
    for i in range(NUM_SEGMENTS):
        add("Reshape", [f"tokens_{i}", "grid_shape"], f"grid_{i}")  # [B, H, W, 3S]
        add("Transpose", [f"grid_{i}"], f"segment_{i}", perm=[0, 3, 1, 2])  # [B, 3S, H, W]

    # segments 0..3: the same weights serve q, k and v, as three groups of one convolution
    add("Concat", ["stacked_dim_1d", "ones", "ones", "ones"], "ones_shape", axis=0)
    add("ConstantOfShape", ["ones_shape"], "ones_weight", value=helper.make_tensor("one", 1, [1], [1.0]))
    conv("segment_0", "ones_weight", "mixed_0", 1, "stacked_dim")
    for i, window in enumerate(WINDOWS, start=1):
        for kind in ("depthwise", "pointwise", "bias"):
            add("Concat", [f"{kind}_{i}"] * 3, f"{kind}_{i}_stacked", axis=0)
        conv(f"segment_{i}", f"depthwise_{i}_stacked", f"spread_{i}", window, "stacked_dim")
        conv(f"spread_{i}", f"pointwise_{i}_stacked", f"mixed_{i}", 1, 3, f"bias_{i}_stacked")
    for i in range(4):
        add("HardSwish", [f"mixed_{i}"], f"proxy_{i}")  # [B, 3S, H, W]
    add("Concat", [f"proxy_{i}" for i in range(4)], "proxies_map", axis=1)  # [B, 12S, H, W]: segment, then q, k, v
    add("Reshape", ["proxies_map", "proxy_shape"], "proxies")  # [B, 4, 3, S * N]
    add("Split", ["proxies"], [f"{t}_segments" for t in "qkv"], axis=2, num_outputs=3)  # 3 x [B, 4, 1, S * N]
    for t in "qkv":
        add("Reshape", [f"{t}_segments", "head_token_shape"], t)  # [B, 8, d, N]

    # q @ (softmax(k).T @ v), transposed: channels stand before tokens
    add("Softmax", ["k"], "weight", axis=-1)
    add("Transpose", ["weight"], "weight_token_first", perm=[0, 1, 3, 2])  # [B, 8, N, d of k]
    add("MatMul", ["v", "weight_token_first"], "context")  # [B, 8, d of v, d of k]
    add("Constant", [], "scale_value", {"value_float": "scale"})
    add("Mul", ["context", "scale_value"], "context_scaled")
    add("MatMul", ["context_scaled", "q"], "attention")  # [B, 8, d, N]

    # CRPE: windows 3, 5, 7 on heads 0-1, 2-4, 5-7
    add("Constant", [], "crpe_heads", value_ints=list(CRPE_HEADS))
    add("Split", ["v", "crpe_heads"], [f"v_heads_{window}" for window in WINDOWS], axis=1)  # [B, 2 or 3, d, N]
    for window, group in zip(WINDOWS, ("segment_dim", "three_head_dim", "three_head_dim"), strict=True):
        add("Reshape", [f"v_heads_{window}", "map_shape"], f"v_map_{window}")  # [B, 2d or 3d, H, W]
        conv(f"v_map_{window}", f"crpe_weight_{window}", f"position_{window}", window, group, f"crpe_bias_{window}")
    add("Concat", [f"position_{window}" for window in WINDOWS], "position_map", axis=1)  # [B, 4S, H, W]
    add("Reshape", ["position_map", "head_token_shape"], "position")  # [B, 8, d, N]
    add("Mul", ["q", "position"], "q_position")
    add("Add", ["attention", "q_position"], "attended")  # [B, 8, d, N]
    add("Reshape", ["attended", "channel_token_shape"], "attended_channel_first")  # [B, 4S, N]
    add("Transpose", ["attended_channel_first"], "attended_token_first", perm=[0, 2, 1])  # [B, N, 4S]

    # segment 4: q, k and v side by side become the local features
    conv("segment_4", "depthwise_0", "spread_0", WINDOWS[0], "stacked_dim")
    conv("spread_0", "pointwise_0", "local_map", 1, 1)  # [B, S, H, W]
    add("Transpose", ["local_map"], "local_grid", perm=[0, 2, 3, 1])  # [B, H, W, S]
    add("Reshape", ["local_grid", "local_shape"], "local")  # [B, N, S]
    add("LayerNormalization", ["local", "norm_weight", "norm_bias"], "local_norm", {"epsilon": "epsilon"}, axis=-1)
    add("HardSwish", ["local_norm"], "x_agg0")
    add("Concat", ["attended_token_first", "x_agg0"], OUTPUT_NAME, axis=-1)  # [B, N, C]
    return helper.make_function(
        DOMAIN,
        OP_TYPE,
        list(INPUT_NAMES),
        [OUTPUT_NAME],
        nodes,
        [helper.make_opsetid("", opset)],
        attributes=list(ATTRIBUTE_NAMES),
        doc_string="Aggregation and mixed attention of GroupMixFormer for CPU libraries; see gmf_edge/ops/channel_last_body.py",
    )
