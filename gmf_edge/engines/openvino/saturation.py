"""INT8 weights of 7 bits, for x86 CPUs without VNNI.

There the kernels multiply UINT8 activations with INT8 weights by VPMADDUBSW, which adds two products in 16 bits and saturates: the
largest number is 32767, and 2 x 255 x 127 is 64770. With codes of at most 64 in size the sum is 32640 at most. So the codes are
halved and their scales doubled: one bit less of the weights, for sums that are right. VNNI (AVX512_VNNI, AVX_VNNI) adds in 32 bits and
needs nothing.

Sources: Intel's instruction set reference, VPMADDUBSW; oneDNN's documentation, "Nuances of int8 computations".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gmf_edge.cpu import cpu_features

# what an engine says whose weights were halved
NARROWED_NOTE = "this CPU has no VNNI, and its INT8 sums would saturate: OpenVINO is given INT8 weights of 7 bits"
_X86, _VNNI = "sse2", frozenset({"avx512_vnni", "avx_vnni"})


def saturates(features: tuple[str, ...] | None = None) -> bool:
    """Whether INT8 sums of this processor saturate: x86 without VNNI. Features by Linux's names; None for this processor's."""
    found = set(cpu_features() if features is None else features)
    return _X86 in found and not found & _VNNI


def halve_weights(model: Any) -> int:
    """Change an openvino.Model: the codes of quantised weights become 7 bits wide. How many weights were changed.

    A weight is what ONNX's DequantizeLinear of INT8 constants becomes: Constant -> Convert -> Subtract the zero point -> Multiply by the
    scale. One with a zero point other than 0, or with other uses, is left alone.
    """
    import openvino
    from openvino import opset13

    changed = 0
    for codes in model.get_ordered_ops():
        if codes.get_type_name() != "Constant" or codes.get_element_type() != openvino.Type.i8 or codes.get_output_size() != 1:
            continue
        multiply = _dequantization_of(codes)
        if multiply is None:
            continue
        scale = multiply.input(1)
        values = _constant(scale.get_source_output().get_node())
        if values is None:
            continue
        halved = opset13.constant(np.round(codes.data / 2.0).astype(np.int8), name=codes.get_friendly_name())
        doubled = opset13.constant(values * 2, dtype=scale.get_element_type())
        next(iter(codes.output(0).get_target_inputs())).replace_source_output(halved.output(0))
        scale.replace_source_output(doubled.output(0))
        changed += 1
    return changed


def _dequantization_of(codes: Any) -> Any:
    """The Multiply at the end of Constant -> Convert -> [Subtract of zeros ->] Multiply; None where the codes lead elsewhere."""
    convert = _only_user(codes, "Convert")
    subtract = None if convert is None else _only_user(convert, "Subtract")
    if subtract is not None:
        zero_point = _constant(subtract.input_value(1).get_node())
        if zero_point is None or np.any(zero_point):
            return None
    before = subtract or convert
    return None if before is None else _only_user(before, "Multiply")


def _only_user(node: Any, kind: str) -> Any:
    users = node.output(0).get_target_inputs()
    found = next(iter(users)).get_node() if len(users) == 1 else None
    return found if found is not None and found.get_type_name() == kind else None


def _constant(node: Any) -> Any:
    """The values of a Constant, also behind Convert and Reshape, as a NumPy array; None for what is no constant."""
    kind = node.get_type_name()
    if kind == "Constant":
        return node.data
    if kind not in ("Convert", "Reshape"):
        return None
    values = _constant(node.input_value(0).get_node())
    return None if values is None else values.reshape(tuple(node.get_output_shape(0)))
