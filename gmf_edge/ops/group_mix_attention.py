"""The fused operator gmf_edge.GmfGroupMixAttention: one attention of GroupMixFormer between its qkv and its proj Linear.

    [q', k', v', x_agg0] = aggregation(qkv)                                                         (gmf_edge.ops.aggregation)
    output = concat(scale * q' @ (softmax(k', over tokens).T @ v') + q' * (CRPE(v') + bias), x_agg0)  (gmf_edge.ops.mixed_attention)

Source: GroupMixFormer (arXiv 2311.15157), models/groupmixformer.py, EfficientAtt.forward between `self.qkv` and `self.proj`.
Letters: B batch, H, W feature map, N = H * W tokens, C channels, S = C / 5 channels of a segment, d = C / 10 channels of a head.

qkv [B, N, 3C] is segment-major: channel s * 3S + t * S + c holds channel c of segment s of t in (q, k, v). Segment 0's BatchNorm is
already in the qkv Linear, those of segments 1, 2, 3 in pointwise_i and bias_i. Output [B, N, C]: 4S channels of attention,
head-major (segment s holds heads 2s and 2s + 1), then S channels of x_agg0.

This file holds the contract (names, shapes, attributes), `reference` in float64 and `function_body`, the ONNX local function.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gmf_edge.errors import SpecError
from gmf_edge.ops.aggregation import NUM_SEGMENTS, WINDOWS, aggregate
from gmf_edge.ops.body_nodes import BodyNodes
from gmf_edge.ops.mixed_attention import CRPE_HEADS, NUM_HEADS, mixed_attention

if TYPE_CHECKING:
    import onnx

OP_TYPE = "GmfGroupMixAttention"
DOMAIN = "gmf_edge"
# opset version of DOMAIN
DOMAIN_VERSION = 1

INPUT_NAMES = (
    "qkv",
    *(f"{kind}_{i}" for i in (1, 2, 3) for kind in ("depthwise", "pointwise", "bias")),
    *("depthwise_0", "pointwise_0", "norm_weight", "norm_bias"),
    *(f"crpe_{kind}_{window}" for window in WINDOWS for kind in ("weight", "bias")),
)
OUTPUT_NAME = "output"
# FP32 whatever the type of qkv: they enter where the LayerNorm's statistics are FP32, and rounding them would gain nothing
FLOAT_INPUTS = ("norm_weight", "norm_bias")

# ONNX cannot compute an attribute from another: the three group counts of the body's convolutions are attributes of their own
ATTRIBUTE_NAMES = ("height", "width", "scale", "epsilon", "segment_dim", "stacked_dim", "three_head_dim")

# torch.nn.LayerNorm's default, which upstream's Agg_0 uses
LAYER_NORM_EPSILON = 1e-5
# the opsets at which function_body is tested
OPSETS = (17, 20, 22)


def node_attributes(height: int, width: int, channels: int, epsilon: float = LAYER_NORM_EPSILON) -> dict[str, int | float]:
    """The attributes of one node, by name, in the order of ATTRIBUTE_NAMES.

    Args:
        height, width: H, W of the feature map.
        channels: C, a multiple of 10.
        epsilon: of the aggregation's LayerNorm.

    Returns:
        height, width, scale = (C / 8)^-0.5, epsilon, segment_dim = S, stacked_dim = 3S (q, k and v of one segment side by side),
        three_head_dim = 3d (CRPE's windows 5 and 7 serve three heads each; window 3 serves two, which is S).

    Raises:
        SpecError: a width or a size that no GroupMixFormer can have.
    """
    _check_width(channels)
    if height < 1 or width < 1:
        raise SpecError(f"the feature map is {height} x {width}", "give a height and a width of at least 1")
    return {
        "height": height,
        "width": width,
        "scale": float((channels / NUM_HEADS) ** -0.5),
        "epsilon": epsilon,
        "segment_dim": channels // NUM_SEGMENTS,
        "stacked_dim": 3 * channels // NUM_SEGMENTS,
        "three_head_dim": 3 * channels // (2 * NUM_SEGMENTS),
    }


def input_shapes(channels: int, batch: int | str = "B", tokens: int | str = "N") -> dict[str, tuple[int | str, ...]]:
    """Shape of each input, by name, in the order of INPUT_NAMES.

    Raises:
        SpecError: `channels` is not a multiple of 10.
    """
    _check_width(channels)
    segment_dim, head_dim = channels // NUM_SEGMENTS, channels // (2 * NUM_SEGMENTS)
    shapes: dict[str, tuple[int | str, ...]] = {"qkv": (batch, tokens, 3 * channels)}
    for i, window in enumerate(WINDOWS, start=1):
        shapes[f"depthwise_{i}"] = (segment_dim, 1, window, window)
        shapes[f"pointwise_{i}"] = (segment_dim, segment_dim, 1, 1)
        shapes[f"bias_{i}"] = (segment_dim,)
    shapes["depthwise_0"] = (3 * segment_dim, 1, 3, 3)
    shapes["pointwise_0"] = (segment_dim, 3 * segment_dim, 1, 1)
    shapes["norm_weight"] = shapes["norm_bias"] = (segment_dim,)
    for heads, window in zip(CRPE_HEADS, WINDOWS, strict=True):
        shapes[f"crpe_weight_{window}"] = (heads * head_dim, 1, window, window)
        shapes[f"crpe_bias_{window}"] = (heads * head_dim,)
    return {name: shapes[name] for name in INPUT_NAMES}


def random_inputs(rng: np.random.Generator, channels: int, batch: int, tokens: int) -> dict[str, NDArray[np.float32]]:
    """Inputs for tests and benchmarks: normal, of order 1, with convolution weights that keep activations there.

    Raises:
        SpecError: `channels` is not a multiple of 10.
    """
    inputs: dict[str, NDArray[np.float32]] = {}
    for name, shape in input_shapes(channels, batch, tokens).items():
        sizes = [int(size) for size in shape]
        fan_in = math.prod(sizes[1:]) if name.startswith(("depthwise", "pointwise", "crpe_weight")) else 1
        inputs[name] = (rng.standard_normal(sizes) / math.sqrt(fan_in)).astype(np.float32)
    return inputs


def reference(inputs: dict[str, NDArray[Any]], height: int, width: int, scale: float, epsilon: float) -> NDArray[np.float64]:
    """The operator in float64, meant to be read and to judge every other form of it.

    Args:
        inputs: arrays by INPUT_NAMES, of the shapes of `input_shapes`, of any float type.
        height, width, scale, epsilon: the node's attributes.

    Returns:
        [B, N, C] float64.
    """
    batch, tokens, stacked = inputs["qkv"].shape
    weights = {name: value for name, value in inputs.items() if name != "qkv"}
    q, k, v, x_agg0 = aggregate(np.asarray(inputs["qkv"], np.float64), weights, height, width, epsilon)
    attention = mixed_attention(q, k, v, weights, scale)
    output: NDArray[np.float64] = np.concatenate([attention, x_agg0], axis=-1).reshape(batch, tokens, stacked // 3)
    return output


def function_body(opset: int, norm_by_casts: bool = True) -> onnx.FunctionProto:
    """The operator as an ONNX local function of standard operators, for every width, size and batch.

    Inside it is channel-first: one transpose in, one out. q, k and v of a segment run as the groups of one convolution, which
    keeps the batch free (upstream stacks them on the batch axis). The type of `qkv` decides the arithmetic, except that the
    softmax over tokens, the context and the LayerNorm run in FLOAT, between casts: a mass of 1 / N leaves half precision's normal
    range at large N, and the square of a deviation above 255 its range.

    Args:
        opset: of the standard domain; OPSETS are tested.
        norm_by_casts: False for runtimes that a cast tells less than LayerNormalization's own stash_type (FLOAT by default): the
            LayerNorm then reads qkv's type, and so have norm_weight and norm_bias.

    Returns:
        A function named OP_TYPE in DOMAIN: inputs INPUT_NAMES, output OUTPUT_NAME, attributes ATTRIBUTE_NAMES (all required).

    Raises:
        SpecError: an opset without LayerNormalization.
    """
    if opset < min(OPSETS):
        raise SpecError(f"opset {opset} has no LayerNormalization", f"use opset {min(OPSETS)} or newer")
    from onnx import TensorProto

    body = BodyNodes()
    add = body.add

    def split(value: str, outputs: list[str], axis: int) -> None:
        """Equal parts; from opset 18 on their number has to be said."""
        if opset >= 18:
            add("Split", [value], outputs, axis=axis, num_outputs=len(outputs))
        else:
            add("Split", [value], outputs, axis=axis)

    # shapes: 0 copies a dimension, which leaves batch and channels free
    add("Constant", [], "first_axis", value_ints=[0])
    for side in ("height", "width"):
        add("Constant", [], side, {"value_int": side})
        add("Unsqueeze", [side, "first_axis"], f"{side}_1d")
    add("Constant", [], "copy_copy", value_ints=[0, 0])
    add("Constant", [], "copy_rest", value_ints=[0, -1])
    add("Constant", [], "copy_copy_rest", value_ints=[0, 0, -1])
    add("Constant", [], "heads_shape", value_ints=[0, NUM_HEADS, -1])
    add("Concat", ["copy_copy", "height_1d", "width_1d"], "map_shape", axis=0)  # [0, 0, H, W]
    add("Concat", ["copy_rest", "height_1d", "width_1d"], "joined_map_shape", axis=0)  # [0, -1, H, W]
    add("Mul", ["height_1d", "width_1d"], "tokens_1d")
    add("Concat", ["heads_shape", "tokens_1d"], "head_token_shape", axis=0)  # [0, 8, -1, N]

    add("Transpose", ["qkv"], "qkv_channel_first", perm=[0, 2, 1])  # [B, 3C, N]
    add("Reshape", ["qkv_channel_first", "map_shape"], "qkv_map")  # [B, 3C, H, W]
    split("qkv_map", [f"segment_{i}" for i in range(NUM_SEGMENTS)], axis=1)  # 5 x [B, 3S, H, W]

    # segments 0..3
    add("HardSwish", ["segment_0"], "proxy_0")
    for i, window in enumerate(WINDOWS, start=1):
        body.separable(i, window)
        add("HardSwish", [f"mixed_{i}"], f"proxy_{i}")  # [B, 3S, H, W]
    for i in range(4):
        split(f"proxy_{i}", [f"{t}_{i}" for t in "qkv"], axis=1)  # 3 x [B, S, H, W]
    for t in "qkv":
        add("Concat", [f"{t}_{i}" for i in range(4)], f"{t}_map", axis=1)  # [B, 4S, H, W]
        add("Reshape", [f"{t}_map", "head_token_shape"], t)  # [B, 8, d, N]

    # q @ (softmax(k).T @ v), transposed: channels stand before tokens
    add("Cast", ["k"], "k_float", to=TensorProto.FLOAT)
    add("Cast", ["v"], "v_float", to=TensorProto.FLOAT)
    add("Softmax", ["k_float"], "weight", axis=-1)
    add("Transpose", ["weight"], "weight_token_first", perm=[0, 1, 3, 2])  # [B, 8, N, d of k]
    add("MatMul", ["v_float", "weight_token_first"], "context")  # [B, 8, d of v, d of k]
    add("Constant", [], "scale_value", {"value_float": "scale"})
    add("Mul", ["context", "scale_value"], "context_scaled")
    add("CastLike", ["context_scaled", "qkv"], "context_cast")
    add("MatMul", ["context_cast", "q"], "attention")  # [B, 8, d, N]

    body.position("joined_map_shape")
    add("Add", ["attention", "q_position"], "heads")  # [B, 8, d, N]
    add("Constant", [], "channels_tokens", value_ints=[0, -1])
    add("Concat", ["channels_tokens", "tokens_1d"], "channel_token_shape", axis=0)  # [0, -1, N]
    add("Reshape", ["heads", "channel_token_shape"], "attention_channel_first")  # [B, 4S, N]
    add("Transpose", ["attention_channel_first"], "attention_token_first", perm=[0, 2, 1])  # [B, N, 4S]

    # segment 4
    body.local_map()
    add("Reshape", ["local_map", "copy_copy_rest"], "local_channel_first")  # [B, S, N]
    add("Transpose", ["local_channel_first"], "local", perm=[0, 2, 1])  # [B, N, S]
    if norm_by_casts:
        for value in ("local", *FLOAT_INPUTS):
            add("Cast", [value], f"{value}_float", to=TensorProto.FLOAT)
        norm_inputs = [f"{value}_float" for value in ("local", *FLOAT_INPUTS)]
        add("LayerNormalization", norm_inputs, "local_norm", {"epsilon": "epsilon"}, axis=-1)
        add("CastLike", ["local_norm", "qkv"], "local_norm_cast")
    else:
        add("LayerNormalization", ["local", *FLOAT_INPUTS], "local_norm", {"epsilon": "epsilon"}, axis=-1)
    add("HardSwish", ["local_norm_cast" if norm_by_casts else "local_norm"], "x_agg0")

    add("Concat", ["attention_token_first", "x_agg0"], OUTPUT_NAME, axis=-1)  # [B, N, C]
    return local_function(body, opset, "Aggregation and mixed attention of GroupMixFormer; see gmf_edge/ops/group_mix_attention.py")


def local_function(body: BodyNodes, opset: int, doc_string: str) -> onnx.FunctionProto:
    """The operator's ONNX local function of these nodes."""
    from onnx import helper

    return helper.make_function(
        DOMAIN,
        OP_TYPE,
        list(INPUT_NAMES),
        [OUTPUT_NAME],
        body.nodes,
        [helper.make_opsetid("", opset)],
        attributes=list(ATTRIBUTE_NAMES),
        doc_string=doc_string,
    )


def _check_width(channels: int) -> None:
    if channels < 2 * NUM_SEGMENTS or channels % (2 * NUM_SEGMENTS):
        raise SpecError(f"embedding width {channels} is not a multiple of 10", "use a multiple of 10, such as 40, 80 or 320")
