"""BatchNorm(Conv(x, w, b)) = Conv(x, a * w, a * b + c) with BatchNorm(y) = a * y + c per output channel.

onnxscript has this rule for a weight of one use; the aggregators' weights serve q, k and v, so the folded weight is a new one here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
from onnxscript.rewriter import MatchResult
from onnxscript.rewriter.pattern import RewriteRule, RewriteRuleClassBase

from gmf_edge.rewrite.constants import attribute_of, batchnorm_affine, constant_of

BATCHNORM_EPSILON = 1e-5  # ONNX's default


class BatchNormIntoConv(RewriteRuleClassBase):
    """Fires on a convolution of constant weights, with or without bias, whose only use is a BatchNormalization."""

    def pattern(self, op: Any, x: Any, gain: Any, bias: Any, mean: Any, variance: Any) -> Any:
        return op.BatchNormalization(
            op.Conv(x, _allow_other_inputs=True, _outputs=["y"]), gain, bias, mean, variance, _outputs=["out"]
        )

    def check(self, context: Any, y: onnx_ir.Value, **values: onnx_ir.Value) -> MatchResult:
        result = MatchResult()
        conv = y.producer()
        if conv is None or any(constant_of(parameter) is None for parameter in conv.inputs[1:]):
            return result.fail("the convolution's weights are not constant", y)
        for name in ("gain", "bias", "mean", "variance"):
            if constant_of(values[name]) is None:
                return result.fail(f"the BatchNormalization's {name} is not constant", values[name])
        return result

    def rewrite(self, op: Any, y: onnx_ir.Value, out: onnx_ir.Value, x: onnx_ir.Value, **values: onnx_ir.Value) -> Any:
        conv, norm = y.producer(), out.producer()
        assert conv is not None
        assert norm is not None
        gain, bias, mean, variance = (constant_of(values[name]) for name in ("gain", "bias", "mean", "variance"))
        assert gain is not None
        assert bias is not None
        assert mean is not None
        assert variance is not None
        scale, shift = batchnorm_affine(gain, bias, mean, variance, attribute_of(norm, "epsilon", BATCHNORM_EPSILON))
        weight = constant_of(conv.inputs[1])
        assert weight is not None
        folded = weight * scale.reshape(-1, *([1] * (weight.ndim - 1)))
        if len(conv.inputs) > 2:
            conv_bias = constant_of(conv.inputs[2])
            assert conv_bias is not None
            shift = shift + scale * conv_bias
        # the output's name keeps the two apart where one weight is folded for several uses
        suffix = f"{conv.name}/folded/{out.name}"
        return op.Conv(
            x,
            op.initializer(onnx_ir.tensor(folded.astype(np.float32)), name=f"{suffix}/weight"),
            op.initializer(onnx_ir.tensor(shift.astype(np.float32)), name=f"{suffix}/bias"),
            **conv.attributes,
            _name=conv.name,
        )


RULE: RewriteRule = BatchNormIntoConv.rule()
