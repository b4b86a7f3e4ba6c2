"""INT8 weights of 7 bits: which processors need them, and that the model stays the same function but for one bit of the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino")

import openvino

from gmf_edge.bundle import open_bundle
from gmf_edge.engines.openvino.saturation import halve_weights, saturates


@pytest.mark.parametrize(
    ("features", "found"),
    [
        (("avx2", "fma", "sse2"), True),
        (("avx512f", "avx512bw", "sse2"), True),
        (("avx2", "avx_vnni", "sse2"), False),
        (("avx512f", "avx512_vnni", "sse2"), False),
        (("asimd", "asimddp", "fp"), False),
        ((), False),
    ],
)
def test_x86_without_vnni_saturates(features: tuple[str, ...], found: bool) -> None:
    assert saturates(features) is found


def model_of(weight: Any, zero_point: int = 0) -> Any:
    """images [1, 4] @ (weight - zero_point) * scale, as the ONNX importer writes it."""
    from openvino import opset13 as ov

    images = ov.parameter([1, 4], dtype=np.float32)
    codes = ov.convert(ov.constant(weight, dtype=np.int8), "f32")
    centred = ov.subtract(codes, ov.reshape(ov.convert(ov.constant(np.full(3, zero_point, np.int8)), "f32"), [1, 3], False))
    scaled = ov.multiply(centred, ov.reshape(ov.constant(np.array([0.5, 0.25, 2.0], np.float32)), [1, 3], False))
    return openvino.Model([ov.matmul(images, scaled, False, False)], [images])


def outputs(model: Any) -> Any:
    return openvino.compile_model(model, "CPU")([np.eye(4, dtype=np.float32)[:1] + 1])[0]


def test_codes_are_halved_and_scales_doubled() -> None:
    weight = np.array([[-128, 127, 3], [2, -4, 64], [0, 100, -100], [8, 8, 8]], np.int8)
    model = model_of(weight)
    before = outputs(model_of(weight))
    assert halve_weights(model) == 1
    (codes,) = [node for node in model.get_ordered_ops() if node.get_element_type() == openvino.Type.i8 and len(node.shape) == 2]
    assert np.array_equal(codes.data, np.round(weight / 2.0))
    assert np.abs(codes.data.astype(int)).max() == 64
    # an odd code is rounded by one half of the doubled scale
    assert np.abs(outputs(model) - before).max() <= 5 * 2.0


def test_a_weight_with_a_zero_point_is_left_alone() -> None:
    weight = np.full((4, 3), 101, np.int8)
    model = model_of(weight, zero_point=1)
    assert halve_weights(model) == 0
    assert np.array_equal(outputs(model), outputs(model_of(weight, zero_point=1)))


def test_every_quantised_layer_of_a_bundle_is_found(pico_int8: Path) -> None:
    layers = json.loads((pico_int8 / "manifest.json").read_text())["lowering"]["int8"]["layers"]
    model = openvino.Core().read_model(str(open_bundle(pico_int8).path("portable.onnx")))
    assert halve_weights(model) == len(layers) > 0
