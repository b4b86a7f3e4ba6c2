"""BatchNormalization(x) = x * a + b for a norm that stands at the end, behind a residual, where no convolution can take it in.

As a product and a sum it is lowered to half precision like any other operator; its variance, which may be beyond FP16, is gone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
from onnxscript.rewriter import MatchResult
from onnxscript.rewriter.pattern import RewriteRule, RewriteRuleClassBase

from gmf_edge.rewrite.batchnorm_into_conv import BATCHNORM_EPSILON
from gmf_edge.rewrite.constants import attribute_of, batchnorm_affine, constant_of


class OutputNorm(RewriteRuleClassBase):
    """Fires on a BatchNormalization whose result is an output of the graph and whose input is no convolution's."""

    def pattern(self, op: Any, x: Any, gain: Any, shift: Any, mean: Any, variance: Any) -> Any:
        return op.BatchNormalization(x, gain, shift, mean, variance, _outputs=["normed"])

    def check(self, context: Any, x: onnx_ir.Value, normed: onnx_ir.Value, **values: onnx_ir.Value) -> MatchResult:
        result = MatchResult()
        if not normed.is_graph_output():
            return result.fail("it is no output's", normed)
        producer = x.producer()
        if producer is not None and producer.op_type == "Conv":
            return result.fail("a convolution can take it in", x)
        for name in ("gain", "shift", "mean", "variance"):
            if constant_of(values[name]) is None:
                return result.fail(f"{name} is not constant", values[name])
        return result

    def rewrite(self, op: Any, x: onnx_ir.Value, normed: onnx_ir.Value, **values: onnx_ir.Value) -> Any:
        norm = normed.producer()
        assert norm is not None
        arrays = [constant_of(values[name]) for name in ("gain", "shift", "mean", "variance")]
        gain, shift, mean, variance = (array for array in arrays if array is not None)
        scale, offset = batchnorm_affine(gain, shift, mean, variance, attribute_of(norm, "epsilon", BATCHNORM_EPSILON))
        factor, summand = (
            op.initializer(onnx_ir.tensor(each.astype(np.float32).reshape(1, -1, 1, 1)), name=f"{norm.name}/{what}")
            for each, what in ((scale, "scale"), (offset, "offset"))
        )
        return op.Add(op.Mul(x, factor, _name=f"{norm.name}/Mul"), summand, _name=f"{norm.name}/Add")


RULE: RewriteRule = OutputNorm.rule()
