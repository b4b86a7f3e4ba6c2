"""Specs refuse nonsense when they are made, with what to do next, and survive JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

from gmf_edge.errors import AccuracyError, EnvironmentProblem, GmfEdgeError, SpecError
from gmf_edge.spec import GATES, TARGETS, VARIANTS, BatchProfile, BuildSpec, Gate, ModelSpec, Precision


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_a_possible_model(variant: str) -> None:
    spec = ModelSpec.of(variant, 10, (256, 192))
    assert spec.segment_dims == tuple(dim // 5 for dim in VARIANTS[variant].embed_dims)
    assert spec.stage_sizes == ((64, 48), (32, 24), (16, 12), (8, 6))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"embed_dims": (48, 40, 80, 80)}, ("48", "multiple of 10")),
        ({"embed_dims": (40, 40, 80)}, ("embed_dims", "four")),
        ({"depths": (1, 0, 1, 1)}, ("depths", "positive")),
        ({"mlp_ratios": (2, 2, 2, -2)}, ("mlp_ratios", "positive")),
        ({"num_classes": 0}, ("num_classes", "give 1 to")),
        ({"image_size": (100, 64)}, ("height 100", "96 or 128")),
        ({"image_size": (64, 230)}, ("width 230", "224 or 256")),
        ({"image_size": (0, 64)}, ("height 0", "such as 32")),
        ({"image_size": (-32, 64)}, ("height -32", "such as 32")),
    ],
)
def test_an_impossible_model_is_refused_with_a_way_out(change: dict[str, Any], words: tuple[str, ...]) -> None:
    possible = ModelSpec.of("pico", 10, (64, 64)).to_json()
    with pytest.raises(SpecError) as refusal:
        ModelSpec(**{**possible, **change})
    assert all(word in str(refusal.value) for word in words), str(refusal.value)
    assert refusal.value.remedy


def test_an_unknown_variant_is_refused_with_the_known_ones() -> None:
    for make in (lambda: ModelSpec.of("nano"), lambda: BuildSpec(variant="nano")):
        with pytest.raises(SpecError, match=r"nano.*pico, mobile, tiny, small, base, large"):
            make()


def test_a_model_spec_survives_json() -> None:
    spec = ModelSpec.of("mobile", 10, (64, 96))
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize("values", [{}, {"variant": "pico"}, {**ModelSpec.of("pico").to_json(), "colour": "red"}])
def test_json_of_another_shape_is_no_model_spec(values: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="not a model spec"):
        ModelSpec.from_json(values)


@pytest.mark.parametrize("sizes", [(0, 1, 8), (2, 1, 8), (1, 9, 8), (4, 4, 2), (-1, 1, 1)])
def test_batch_sizes_out_of_order_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(SpecError, match="1 <= --min-batch <= --opt-batch <= --max-batch"):
        BatchProfile(*sizes)


@pytest.mark.parametrize(("sizes", "proved"), [((1, 1, 8), (1, 8)), ((2, 4, 8), (2, 4, 8)), ((3, 3, 3), (3,))])
def test_a_profile_names_each_size_to_prove_once(sizes: tuple[int, int, int], proved: tuple[int, ...]) -> None:
    assert BatchProfile(*sizes).sizes == proved


@pytest.mark.parametrize(
    "limits", [(-0.1, 1, 1), (101, 1, 1), (math.nan, 1, 1), (0, 1.5, 1), (0, math.nan, 1), (0, 1, 2), (0, 1, math.nan)]
)
def test_a_gate_that_cannot_be_meant_is_refused(limits: tuple[float, float, float]) -> None:
    with pytest.raises(SpecError):
        Gate(*limits)


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: BuildSpec(backend="cuda"),
        lambda: BuildSpec(io_dtype="float64"),
        lambda: BuildSpec(eval_images=0),
        lambda: BuildSpec(num_classes=0),
        lambda: BuildSpec(max_drop_points=math.nan),
        lambda: BuildSpec(max_drop_points=-1.0),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused(request_of: Callable[[], BuildSpec]) -> None:
    with pytest.raises(SpecError) as refusal:
        request_of()
    assert refusal.value.exit_status == 2
    assert refusal.value.remedy


def test_max_drop_changes_the_drop_and_nothing_else() -> None:
    spec = BuildSpec(precision=Precision.FP16, max_drop_points=2.5, checkpoint=Path("a.pth"))
    usual = GATES[Precision.FP16]
    assert spec.gate == Gate(2.5, usual.min_agreement, usual.min_cosine, strict=True)
    assert BuildSpec(precision=Precision.FP16).gate == usual


def test_gates_loosen_with_precision_and_none_is_open() -> None:
    fp32, fp16, int8 = (GATES[precision] for precision in (Precision.FP32, Precision.FP16, Precision.INT8))
    assert fp32.max_drop_points <= fp16.max_drop_points <= int8.max_drop_points < 1
    assert fp32.min_cosine >= fp16.min_cosine >= int8.min_cosine > 0.9
    assert set(GATES) == set(Precision)


def test_the_default_fp16_gate_is_a_tenth_of_a_point() -> None:
    assert GATES[Precision.FP16].max_drop_points == 0.1


def test_specs_are_frozen() -> None:
    spec = BuildSpec()
    for name in (field.name for field in fields(spec)):
        with pytest.raises(FrozenInstanceError):
            setattr(spec, name, None)


def test_every_target_has_an_opset_that_its_importer_reads() -> None:
    assert {name: target.opset for name, target in TARGETS.items() if target.typing == "weak"} == {"tensorrt-8.6": 17}
    assert all(target.name == name and target.opset in (17, 20) for name, target in TARGETS.items())


def test_an_error_says_what_and_what_next_and_has_its_status() -> None:
    assert str(GmfEdgeError("the disk is full", "free some")) == "the disk is full; free some"
    assert str(GmfEdgeError("the disk is full")) == "the disk is full"
    statuses = (GmfEdgeError.exit_status, SpecError.exit_status, AccuracyError.exit_status, EnvironmentProblem.exit_status)
    assert statuses == (1, 2, 3, 4)
