"""The core of GMA, from the qkv Linear to the concatenation before proj, becomes one GmfGroupMixAttention node.

Before: 56 nodes a block, with BatchNorm already folded into the pointwise convolutions. After: MatMul and Add with folded, segment-major
columns (qkv_rows.py) and one node whose contract, reference and body are in gmf_edge/ops/group_mix_attention.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
from onnxscript.rewriter import MatchResult
from onnxscript.rewriter.pattern import ANY_VALUE, RewriteRule

from gmf_edge.ops.group_mix_attention import DOMAIN, INPUT_NAMES, OP_TYPE, node_attributes
from gmf_edge.rewrite.batchnorm_into_conv import BATCHNORM_EPSILON
from gmf_edge.rewrite.constants import attribute_of, batchnorm_affine, constant_of
from gmf_edge.rewrite.qkv_rows import fused_qkv
from gmf_edge.spec import NUM_HEADS, NUM_SEGMENTS

SHARED = tuple(name for name in INPUT_NAMES if name != "qkv")
NORM = ("gain", "shift", "mean", "variance")
NUM_PARTS = 3 * NUM_SEGMENTS


def _check(context: Any, **values: onnx_ir.Value) -> MatchResult:
    """Declines where a softmax, a scale, a split or a width is another than GroupMixFormer's."""
    result = MatchResult()
    for name in (*SHARED, *NORM, "qkv_weight", "qkv_bias", "attention_scale", "crpe_split"):
        if constant_of(values[name]) is None:
            return result.fail(f"{name} is not constant", values[name])
    weight = constant_of(values["qkv_weight"])
    assert weight is not None
    dim = int(weight.shape[0])
    if weight.shape != (dim, 3 * dim) or dim % (2 * NUM_SEGMENTS):
        return result.fail(f"the qkv weight is {weight.shape}, not [C, 3C] with C a multiple of 10", values["qkv_weight"])
    softmax, maps = values["k_weights"].producer(), values["maps"]
    if softmax is None or attribute_of(softmax, "axis", -1) not in (-1, 3):
        return result.fail("softmax runs over channels, not tokens", values["k_weights"])
    if maps.shape is None or len(maps.shape) != 4 or not all(isinstance(side, int) for side in maps.shape[2:]):
        return result.fail("height and width are not fixed", maps)
    expected = node_attributes(int(maps.shape[2]), int(maps.shape[3]), dim)
    scale = constant_of(values["attention_scale"])
    assert scale is not None
    if scale.size != 1 or not np.isclose(float(scale.reshape(-1)[0]), expected["scale"], rtol=1e-6):
        return result.fail(f"the attention scale is {scale}, not (C / 8)^-0.5", values["attention_scale"])
    split = constant_of(values["crpe_split"])
    head_dim = dim // 10
    if split is None or split.reshape(-1).tolist() != [2 * head_dim, 3 * head_dim, 3 * head_dim]:
        return result.fail("the position encoding does not split the heads 2, 3, 3", values["crpe_split"])
    return result


def _rewrite(op: Any, x: onnx_ir.Value, **values: onnx_ir.Value) -> Any:
    weight, bias = constant_of(values["qkv_weight"]), constant_of(values["qkv_bias"])
    gain, shift, mean, variance = (constant_of(values[name]) for name in NORM)
    norm, linear, local_norm = values["q0"].producer(), values["product"].producer(), values["local_tokens"].producer()
    assert weight is not None
    assert bias is not None
    assert gain is not None
    assert shift is not None
    assert mean is not None
    assert variance is not None
    assert norm is not None
    assert linear is not None
    assert local_norm is not None
    scale, offset = batchnorm_affine(gain, shift, mean, variance, attribute_of(norm, "epsilon", BATCHNORM_EPSILON))
    columns, offsets = fused_qkv(weight, bias, scale, offset)
    # "...att.qkv/MatMul" -> "...att"
    module = (linear.name or OP_TYPE).rsplit(".qkv/", 1)[0]
    product = op.MatMul(x, op.initializer(onnx_ir.tensor(columns), name=f"{module}.qkv.weight_segment_major"), _name=linear.name)
    qkv = op.Add(
        product, op.initializer(onnx_ir.tensor(offsets), name=f"{module}.qkv.bias_segment_major"), _name=f"{module}.qkv/Add"
    )
    height, width = values["maps"].shape[2:]
    attributes = node_attributes(
        int(height), int(width), int(weight.shape[0]), epsilon=attribute_of(local_norm, "epsilon", BATCHNORM_EPSILON)
    )
    return op.op(OP_TYPE, qkv, *(values[name] for name in SHARED), _domain=DOMAIN, _name=f"{module}/{OP_TYPE}", **attributes)


def _core(
    op: Any, x: Any, qkv_weight: Any, qkv_bias: Any, attention_scale: Any, crpe_split: Any,
    depthwise_1: Any, pointwise_1: Any, bias_1: Any, depthwise_2: Any, pointwise_2: Any, bias_2: Any,
    depthwise_3: Any, pointwise_3: Any, bias_3: Any, depthwise_0: Any, pointwise_0: Any, norm_weight: Any, norm_bias: Any,
    crpe_weight_3: Any, crpe_bias_3: Any, crpe_weight_5: Any, crpe_bias_5: Any, crpe_weight_7: Any, crpe_bias_7: Any,
    gain: Any, shift: Any, mean: Any, variance: Any,
) -> Any:  # fmt: skip
    """The pattern, in the order in which the model computes it (gmf_edge/model/groupmixformer.py, Attention.core)."""
    aggregators = ((depthwise_1, pointwise_1, bias_1), (depthwise_2, pointwise_2, bias_2), (depthwise_3, pointwise_3, bias_3))
    product = op.MatMul(x, qkv_weight, _outputs=["product"])
    tokens = op.Transpose(op.Add(product, qkv_bias), perm=[0, 2, 1])
    maps = op.Reshape(tokens, ANY_VALUE, _outputs=["maps"])
    segments = op.Split(maps, axis=1, _outputs=[f"segment_{i}" for i in range(NUM_PARTS)])

    def aggregate(part: int) -> Any:
        first = part * NUM_SEGMENTS
        normed = op.BatchNormalization(segments[first], gain, shift, mean, variance, _outputs=[f"{'qkv'[part]}0"])
        mixed = [op.HardSwish(normed)]
        for segment, (depthwise, pointwise, bias) in enumerate(aggregators, start=1):
            mixed.append(op.HardSwish(op.Conv(op.Conv(segments[first + segment], depthwise), pointwise, bias)))
        return op.Concat(*mixed, axis=1)

    q_map, k_map, v_map = aggregate(0), aggregate(1), aggregate(2)
    local = op.Concat(*(segments[part * NUM_SEGMENTS + 4] for part in range(3)), axis=1)
    local = op.Transpose(op.Reshape(op.Conv(op.Conv(local, depthwise_0), pointwise_0), ANY_VALUE), perm=[0, 2, 1])
    x_agg0 = op.HardSwish(op.LayerNormalization(local, norm_weight, norm_bias, _outputs=["local_tokens"]))

    q, k, v = (op.Reshape(mixed, ANY_VALUE) for mixed in (q_map, k_map, v_map))
    context = op.MatMul(v, op.Transpose(op.Softmax(k, _outputs=["k_weights"]), perm=[0, 1, 3, 2]))
    attended = op.Mul(op.MatMul(context, q), attention_scale)
    parts = op.Split(v_map, crpe_split, axis=1, _outputs=["part_3", "part_5", "part_7"])
    encodings = ((crpe_weight_3, crpe_bias_3), (crpe_weight_5, crpe_bias_5), (crpe_weight_7, crpe_bias_7))
    position = op.Concat(*(op.Conv(part, *encoding) for part, encoding in zip(parts, encodings, strict=True)), axis=1)
    heads = op.Add(attended, op.Mul(q, op.Reshape(position, ANY_VALUE)))
    mixed = op.Transpose(op.Reshape(heads, ANY_VALUE), perm=[0, 2, 1])
    return op.Concat(mixed, x_agg0, axis=2)


RULE = RewriteRule(_core, _rewrite, _check, name="GroupMixAttention")
assert NUM_HEADS == 8, "the body's head groups 2, 3, 3 are for eight heads"
