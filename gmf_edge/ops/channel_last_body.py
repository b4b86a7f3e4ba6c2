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

from typing import TYPE_CHECKING

from gmf_edge.ops.aggregation import NUM_SEGMENTS, WINDOWS
from gmf_edge.ops.body_nodes import BodyNodes
from gmf_edge.ops.group_mix_attention import OUTPUT_NAME, local_function
from gmf_edge.ops.mixed_attention import NUM_HEADS

if TYPE_CHECKING:
    import onnx


def channel_last_body(opset: int) -> onnx.FunctionProto:
    """The operator in FP32 as an ONNX local function of standard operators; inputs, output and attributes as function_body's.

    Args:
        opset: of the standard domain, 18 or newer.
    """
    from onnx import helper

    body = BodyNodes()
    add = body.add

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

    # segments 0..3
    add("Concat", ["stacked_dim_1d", "ones", "ones", "ones"], "ones_shape", axis=0)
    add("ConstantOfShape", ["ones_shape"], "ones_weight", value=helper.make_tensor("one", 1, [1], [1.0]))
    body.conv("segment_0", "ones_weight", "mixed_0", 1, "stacked_dim")
    for i, window in enumerate(WINDOWS, start=1):
        body.separable(i, window)
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

    body.position("map_shape")
    add("Add", ["attention", "q_position"], "attended")  # [B, 8, d, N]
    add("Reshape", ["attended", "channel_token_shape"], "attended_channel_first")  # [B, 4S, N]
    add("Transpose", ["attended_channel_first"], "attended_token_first", perm=[0, 2, 1])  # [B, N, 4S]

    # segment 4
    body.local_map()
    add("Transpose", ["local_map"], "local_grid", perm=[0, 2, 3, 1])  # [B, H, W, S]
    add("Reshape", ["local_grid", "local_shape"], "local")  # [B, N, S]
    add("LayerNormalization", ["local", "norm_weight", "norm_bias"], "local_norm", {"epsilon": "epsilon"}, axis=-1)
    add("HardSwish", ["local_norm"], "x_agg0")
    add("Concat", ["attended_token_first", "x_agg0"], OUTPUT_NAME, axis=-1)  # [B, N, C]
    return local_function(
        body,
        opset,
        "Aggregation and mixed attention of GroupMixFormer for CPU libraries; see gmf_edge/ops/channel_last_body.py",
    )
