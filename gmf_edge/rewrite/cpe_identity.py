"""Conv_depthwise(x, w, b) + x = Conv_depthwise(x, w + delta, b): the identity beside CPE is one more in the centre tap."""

from __future__ import annotations

from typing import Any

import onnx_ir
from onnxscript.rewriter import MatchResult
from onnxscript.rewriter.pattern import RewriteRule, RewriteRuleClassBase

from gmf_edge.rewrite.constants import attribute_of, constant_of


class CpeIdentity(RewriteRuleClassBase):
    """Fires on Add(Conv(x), x) where the convolution is depthwise, centred and of stride 1."""

    def pattern(self, op: Any, x: Any, weight: Any, bias: Any) -> Any:
        return op.Add(op.Conv(x, weight, bias, _outputs=["y"]), x)

    def check(self, context: Any, y: onnx_ir.Value, weight: onnx_ir.Value, **_: onnx_ir.Value) -> MatchResult:
        result = MatchResult()
        conv, taps = y.producer(), constant_of(weight)
        if conv is None or taps is None:
            return result.fail("the convolution's weight is not constant", weight)
        channels, per_group, height, width = taps.shape
        if per_group != 1 or attribute_of(conv, "group", 1) != channels:
            return result.fail("the convolution is not depthwise", y)
        if height % 2 == 0 or width % 2 == 0:
            return result.fail("the window has no centre tap", weight)
        if list(attribute_of(conv, "pads", [0] * 4)) != [height // 2, width // 2] * 2:
            return result.fail("the convolution is not centred", y)
        if any(step != 1 for step in [*attribute_of(conv, "strides", [1, 1]), *attribute_of(conv, "dilations", [1, 1])]):
            return result.fail("the convolution is strided or dilated", y)
        return result

    def rewrite(self, op: Any, y: onnx_ir.Value, x: onnx_ir.Value, weight: onnx_ir.Value, bias: onnx_ir.Value) -> Any:
        conv, taps = y.producer(), constant_of(weight)
        assert conv is not None
        assert taps is not None
        centred = taps.copy()
        centred[:, :, taps.shape[2] // 2, taps.shape[3] // 2] += 1.0
        return op.Conv(
            x,
            op.initializer(onnx_ir.tensor(centred), name=f"{conv.name}/with_identity/weight"),
            bias,
            **conv.attributes,
            _name=conv.name,
        )


RULE: RewriteRule = CpeIdentity.rule()
