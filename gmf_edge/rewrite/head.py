"""Gemm(mean(BatchNorm(x)), W, b) = Gemm(Flatten(GlobalAveragePool(x)), W * a, b + W @ c) with BatchNorm(y) = a * y + c.

GlobalAveragePool instead of ReduceMean, because the latter's axes changed from attribute to input between opset 17 and 18.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
from onnxscript.rewriter import MatchResult
from onnxscript.rewriter.pattern import RewriteRule, RewriteRuleClassBase

from gmf_edge.rewrite.batchnorm_into_conv import BATCHNORM_EPSILON
from gmf_edge.rewrite.constants import attribute_of, batchnorm_affine, constant_of


class PooledHead(RewriteRuleClassBase):
    """Fires on the classifier: BatchNormalization, mean over H and W, Gemm with transposed constant weights."""

    def pattern(self, op: Any, x: Any, gain: Any, shift: Any, mean: Any, variance: Any, axes: Any, weight: Any, bias: Any) -> Any:
        normed = op.BatchNormalization(x, gain, shift, mean, variance, _outputs=["normed"])
        pooled = op.ReduceMean(normed, axes, _outputs=["pooled"])
        return op.Gemm(pooled, weight, bias, transB=1, _outputs=["logits"])

    def check(
        self, context: Any, pooled: onnx_ir.Value, axes: onnx_ir.Value, logits: onnx_ir.Value, **values: onnx_ir.Value
    ) -> MatchResult:
        result = MatchResult()
        reduced = constant_of(axes)
        if reduced is None or sorted(int(a) % 4 for a in reduced.reshape(-1)) != [2, 3]:
            return result.fail("the mean is not over H and W", axes)
        node = pooled.producer()
        if node is None or attribute_of(node, "keepdims", 1) != 0:
            return result.fail("the mean keeps its axes", pooled)
        gemm = logits.producer()
        if gemm is None or attribute_of(gemm, "alpha", 1.0) != 1.0 or attribute_of(gemm, "beta", 1.0) != 1.0:
            return result.fail("the classifier scales its product or its bias", logits)
        for name in ("gain", "shift", "mean", "variance", "weight", "bias"):
            if constant_of(values[name]) is None:
                return result.fail(f"{name} is not constant", values[name])
        return result

    def rewrite(self, op: Any, x: onnx_ir.Value, normed: onnx_ir.Value, logits: onnx_ir.Value, **values: onnx_ir.Value) -> Any:
        norm, gemm = normed.producer(), logits.producer()
        assert norm is not None
        assert gemm is not None
        arrays = {name: constant_of(values[name]) for name in ("gain", "shift", "mean", "variance", "weight", "bias")}
        gain, shift, mean, variance, weight, bias = (a for a in arrays.values() if a is not None)
        scale, offset = batchnorm_affine(gain, shift, mean, variance, attribute_of(norm, "epsilon", BATCHNORM_EPSILON))
        pooled = op.Flatten(op.GlobalAveragePool(x, _name="head/GlobalAveragePool"), axis=1, _name="head/Flatten")
        return op.Gemm(
            pooled,
            op.initializer(onnx_ir.tensor((weight * scale).astype(np.float32)), name="head/folded/weight"),
            op.initializer(onnx_ir.tensor((bias + weight.astype(np.float64) @ offset).astype(np.float32)), name="head/folded/bias"),
            transB=1,
            _name=gemm.name,
        )


RULE: RewriteRule = PooledHead.rule()
